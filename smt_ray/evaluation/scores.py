"""Scores of the teacher and of the RNN on whole validation sequences, and the drift between them.

Shapes: B batch, L sequence, K memory tokens, D width, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smt_ray.model.decoder import Decoder
from smt_ray.model.encoder import Encoder
from smt_ray.model.rnn import RNN


@dataclass
class Score:
    """Cross-entropy summed over sequences, by position; `count` sequences."""

    nats: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    count: int = 0

    def add(
        self, memory: Float[Tensor, "B L K D"], readout: Decoder, targets: Int[Tensor, "B L"]
    ) -> None:
        """Add a batch whose targets `readout` predicts from `memory`."""
        logits = readout(memory.flatten(0, 1))[:, 0].float()
        nats = F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)
        total = nats.double().sum(0).cpu()
        self.nats = total if self.count == 0 else self.nats + total
        self.count += len(targets)

    @property
    def curve(self) -> Tensor:
        """Mean bits per target by position, (L,)."""
        return self.nats / (self.count * math.log(2))

    @property
    def bits(self) -> float:
        """Total bits."""
        return float(self.nats.sum()) / math.log(2)


class Drift:
    """NMSE by position: squared error of a rollout over the labels' variance over sequences."""

    def __init__(self) -> None:
        """Begin with no sequence."""
        self.sums: list[Tensor] = []
        self.count = 0

    def add(self, own: Float[Tensor, "B L K D"], label: Float[Tensor, "B L K D"]) -> None:
        """Add a batch of rollouts and the labels of the same positions."""
        own, label = own.double().cpu(), label.double().cpu()
        new = [(own - label).square().sum((0, 2, 3)), label.sum(0), label.square().sum(0)]
        self.sums = new if not self.sums else [a + b for a, b in zip(self.sums, new, strict=True)]
        self.count += len(own)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Return error and variance by position, each summed over (K, D), a mean over sequences."""
        error, total, squares = self.sums
        variance = squares / self.count - (total / self.count).square()
        return error / self.count, variance.sum((1, 2))

    @property
    def curve(self) -> Tensor:
        """NMSE by position, (L,)."""
        error, variance = self._parts()
        return error / variance.clamp(min=1e-12)

    @property
    def nmse(self) -> float:
        """NMSE over all positions."""
        error, variance = self._parts()
        return float(error.sum() / variance.sum().clamp(min=1e-12))


@torch.inference_mode()
def compare(
    encoder: Encoder,
    readouts: Mapping[str, Decoder],
    rnns: Mapping[str, RNN],
    batches: Iterable[dict[str, Tensor]],
    device: torch.device,
) -> tuple[dict[str, Score], dict[str, Drift]]:
    """Score readouts on the encoder's memories, and RNNs on rollouts from the empty memory.

    Returns:
        Scores by the names of `readouts` and `rnns`, and drifts by those of `rnns`.
    """
    scores = {name: Score() for name in (*readouts, *rnns)}
    drifts = {name: Drift() for name in rnns}
    for batch in batches:
        inputs, targets = batch["inputs"].to(device), batch["targets"].to(device)
        label = encoder(inputs)
        for name, readout in readouts.items():
            scores[name].add(label, readout, targets)
        for name, rnn in rnns.items():
            own = rnn.rollout(inputs)
            scores[name].add(own, rnn.readout, targets)
            drifts[name].add(own, label)
    return scores, drifts
