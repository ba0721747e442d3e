"""Scores of the teacher and of RNNs on whole validation sequences, and the drift between them.

Shapes: B batch, L sequence, K memory tokens, D width, V vocabulary, N memories with a target.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.evaluation.budget import memories_at_once, rows_at_once
from smt_ray.model.decoder import Decoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.objective import IGNORED, Batch

NUMBERS = 1 << 22
"""Numbers of memories that a drift compares at once, at most."""
ALIKE = 1e-6
"""Share of the mean variance over positions below which labels count as equal."""


class Score:
    """Cross-entropy and right answers at positions with a target, summed over sequences."""

    def __init__(self) -> None:
        """Begin with no sequence."""
        self.sums = torch.zeros(3, 0, dtype=torch.float64)
        self.covered = 0

    def add(
        self,
        memory: Float[Tensor, "B L K D"],
        readout: Decoder,
        targets: Int[Tensor, "B L"],
        covered: int | None = None,
    ) -> None:
        """Add a batch whose targets `readout` predicts from `memory`.

        Args:
            memory: the memories m_0..m_{L-1}.
            readout: the network that reads them, a part of them at a time.
            targets: y_0..y_{L-1}; -100 where there is none.
            covered: bytes or pixels that the targets cover; a target is one unit if absent.
        """
        asked = targets != IGNORED
        rows, wanted = memory[asked], targets[asked]
        slots, width = memory.shape[2:]
        vocabulary = len(readout.logits.weight)
        size = memories_at_once(slots, width, vocabulary, memory.device)
        found = torch.zeros(3, *targets.shape, dtype=torch.float64, device=targets.device)
        parts = [
            nats_and_hits(readout(part)[:, 0].float(), answer)
            for part, answer in zip(rows.split(size), wanted.split(size), strict=True)
        ]
        found[:2, asked] = torch.cat(parts, dim=1)
        found[2] = asked
        self.tally(found, covered)

    def tally(self, found: Float[Tensor, "3 B L"], covered: int | None = None) -> None:
        """Add nats, right answers and targets of a batch by position."""
        total = found.sum(1).cpu()
        self.sums = total + self.sums if self.sums.numel() else total
        self.covered += int(total[2].sum()) if covered is None else covered

    def merge(self, other: "Score") -> None:
        """Add the sequences of another score."""
        self.sums = other.sums + self.sums if self.sums.numel() else other.sums
        self.covered += other.covered

    @property
    def bits(self) -> float:
        """Bits per unit covered."""
        return float(self.sums[0].sum()) / math.log(2) / self.covered

    @property
    def accuracy(self) -> float:
        """Share of right answers: the likeliest symbol is the target."""
        return float(self.sums[1].sum() / self.sums[2].sum())

    @property
    def curve(self) -> Tensor:
        """Bits per unit by position, (L,); NaN where no sequence has a target."""
        per_unit = float(self.sums[2].sum()) / self.covered
        return self.sums[0] / self.sums[2] / math.log(2) * per_unit

    @property
    def accuracy_curve(self) -> Tensor:
        """Accuracy by position, (L,); NaN where no sequence has a target."""
        return self.sums[1] / self.sums[2]


def nats_and_hits(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Tensor:
    """Return the cross-entropy in nats, and 1 for a right answer, (2, N)."""
    nats = F.cross_entropy(logits, targets, reduction="none")
    return torch.stack((nats, (logits.argmax(1) == targets).float())).double()


class Drift:
    """NMSE by position: squared error of a rollout over the labels' variance over sequences."""

    def __init__(self) -> None:
        """Begin with no sequence."""
        self.sums: list[Tensor] = []
        self.count = 0

    def add(self, own: Float[Tensor, "B L K D"], label: Float[Tensor, "B L K D"]) -> None:
        """Add a batch of rollouts and the labels of the same positions."""
        size = max(1, NUMBERS // own[:, 0].numel())
        parts = [
            _moments(mine.double().cpu(), true.double().cpu())
            for mine, true in zip(own.split(size, 1), label.split(size, 1), strict=True)
        ]
        new = [torch.cat(of_all) for of_all in zip(*parts, strict=True)]
        self.sums = new if not self.sums else [a + b for a, b in zip(self.sums, new, strict=True)]
        self.count += len(own)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Return error and variance by position, each summed over (K, D), a mean over sequences."""
        error, total, squares = self.sums
        variance = squares / self.count - (total / self.count).square()
        return error / self.count, variance.sum((1, 2))

    @property
    def curve(self) -> Tensor:
        """NMSE by position, (L,); NaN where all labels are alike, as after a start symbol."""
        error, variance = self._parts()
        return torch.where(variance > ALIKE * variance.mean(), error / variance, torch.nan)

    @property
    def nmse(self) -> float:
        """NMSE over all positions."""
        error, variance = self._parts()
        return float(error.sum() / variance.sum().clamp(min=1e-12))


def _moments(
    own: Float[Tensor, "B L K D"], label: Float[Tensor, "B L K D"]
) -> tuple[Float[Tensor, " L"], Float[Tensor, "L K D"], Float[Tensor, "L K D"]]:
    """Return, summed over sequences, the squared error, the labels and their squares."""
    return (own - label).square().sum((0, 2, 3)), label.sum(0), label.square().sum(0)


@torch.inference_mode()
def compare(
    encoder: nn.Module,
    readouts: Mapping[str, Decoder],
    rnns: Mapping[str, RNN],
    batches: Iterable[Batch],
    device: torch.device,
) -> tuple[dict[str, Score], dict[str, Drift]]:
    """Score readouts on the encoder's memories, and RNNs on rollouts from the empty memory.

    Returns:
        Scores by the names of `readouts` and `rnns`, and drifts by those of `rnns`.
    """
    scores = {name: Score() for name in (*readouts, *rnns)}
    drifts = {name: Drift() for name in rnns}
    for inputs, targets, covered in _parts(rnns, batches, device):
        label = encoder(inputs)
        for name, readout in readouts.items():
            scores[name].add(label, readout, targets, covered)
        for name, rnn in rnns.items():
            own = rnn.rollout(inputs)
            scores[name].add(own, rnn.readout, targets, covered)
            drifts[name].add(own, label)
    return scores, drifts


@torch.inference_mode()
def score_rollouts(
    rnns: Mapping[str, RNN], batches: Iterable[Batch], device: torch.device
) -> dict[str, Score]:
    """Score RNNs where no label is: on sequences of any length, from the empty memory."""
    scores = {name: Score() for name in rnns}
    for inputs, targets, covered in _parts(rnns, batches, device):
        for name, rnn in rnns.items():
            scores[name].add(rnn.rollout(inputs), rnn.readout, targets, covered)
    return scores


def _parts(
    rnns: Mapping[str, RNN], batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, int | None]]:
    """Yield inputs and targets, as many as fit, and the units they cover if batches count them."""
    for batch in batches:
        count, length = batch["inputs"].shape
        fitting = [rows_at_once(rnn.config, length, device) for rnn in rnns.values()]
        size = min(fitting, default=count)
        units = batch["bytes"].reshape(count, -1).sum(1) if "bytes" in batch else None
        for start in range(0, count, size):
            part = slice(start, start + size)
            covered = None if units is None else int(units[part].sum())
            yield batch["inputs"][part].to(device), batch["targets"][part].to(device), covered
