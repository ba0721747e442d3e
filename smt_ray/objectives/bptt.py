"""The baseline: the RNN trained by backpropagation through time (BPTT), full or truncated.

The same cell and readout as in Supervised Memory Training, unrolled from the empty memory; also the
fine-tuning after DMT. Shapes: B batch, L sequence, K memory tokens, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smt_ray.config import BpttConfig, ModelConfig
from smt_ray.model.rnn import RNN
from smt_ray.objectives.objective import (
    Batch,
    Objective,
    normalisers,
    readout_loss,
    valid_targets,
)


class Bptt(Objective):
    """`CE(g(m_t), y_t)` over an unrolled sequence; the readout runs once, over all its targets."""

    def __init__(self, model: ModelConfig, bptt: BpttConfig, vocabulary: int) -> None:
        """Create the RNN with fresh weights."""
        super().__init__()
        self.bptt = bptt
        self.rnn = RNN(model, vocabulary)

    def unroll(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L K D"]:
        """Return m_0..m_{L-1}; truncated, no gradient crosses a multiple of `span` timesteps.

        All chunks of a truncated sequence stay in one graph, so that their gradients make one step.
        """
        span = self.bptt.span if self.bptt.mode == "truncated" else tokens.shape[1]
        memory, memories = self.rnn.initial(len(tokens)), []
        for timestep, token in enumerate(tokens.unbind(1)):
            if timestep % span == 0:
                memory = memory.detach()
            memory = self.rnn.step(memory, token)
            memories.append(memory)
        return torch.stack(memories, dim=1)

    def counts(self, batch: Batch) -> Float[Tensor, "1"]:
        """Return the valid targets."""
        return valid_targets(batch["targets"]).cpu().view(1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy in nats."""
        (count,) = normalisers(self, batch).to(batch["inputs"].device)
        memory = self.unroll(batch["inputs"])
        loss = readout_loss(self.rnn.readout, memory, batch["targets"], count)
        return {"loss": loss, "loss/readout": loss}
