"""The transition model: the cell fitted to stored labels, parallel over time (Eq. 3).

Shapes: B batch, L sequence, K memory tokens, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from smt_ray.config import ModelConfig
from smt_ray.model.cells import build_cell
from smt_ray.objectives.losses import squared_error
from smt_ray.objectives.objective import Batch, Objective, apply_cell, normalisers, previous


class Transition(Objective):
    """Eq. 3 on every pair (m_{t-1}, x_t) -> m_t of a sequence, the empty memory's among them."""

    def __init__(self, model: ModelConfig, vocabulary: int) -> None:
        """Create the cell with fresh weights."""
        super().__init__()
        self.cell = build_cell(model, vocabulary)

    def counts(self, batch: Batch) -> Float[Tensor, "1"]:
        """Return how many numbers the labels hold."""
        memory = batch["memory"]
        return torch.full((1,), memory.numel(), dtype=torch.float32, device=memory.device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of the one-step update."""
        memory = batch["memory"].float()
        predicted = apply_cell(self.cell, previous(memory), batch["inputs"])
        (count,) = normalisers(self, batch)
        dyn = squared_error(predicted, memory, count)
        return {"loss": dyn, "loss/dyn": dyn}
