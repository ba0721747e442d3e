"""What the training loop asks of an objective, and the parts that objectives share.

A batch is a dictionary of tensors: `sequence_id` (B,), `inputs` and `targets` (B, L), `asked`
(B, S), the positions of the targets where a row has at most S < L of them, `memory` (B, L, K, D)
where labels are read, the scalars `step` and `progress` (the share of all steps that is done), and
`counts`, the mean over all micro-batches and ranks of `Objective.counts`. Each loss is a sum over
`counts`, so that the mean over micro-batches and ranks that DeepSpeed takes of the gradients equals
the mean over the GLOBAL count of valid targets.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Batch = dict[str, Tensor]

IGNORED = -100
"""Target id of a position without a target."""


class Objective(nn.Module, ABC):
    """Base of all objectives."""

    @abstractmethod
    def counts(self, batch: Batch) -> Float[Tensor, " N"]:
        """Return the denominators of this objective's losses for one micro-batch, on its device."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, its parts as `loss/NAME`, and `carry` where the data keeps state."""

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the figure by which checkpoints are compared, and further metrics.

        A metric of two numbers is a ratio, whose parts are averaged apart.
        """
        return self(batch)

    def probe(self, batch: Batch) -> dict[str, Tensor]:
        """Return figures, as `validate` does, about a batch of what the data keeps; none here."""
        return {}


def normalisers(objective: Objective, batch: Batch) -> Float[Tensor, " N"]:
    """Return the global denominators of `batch`, or its own where no loop has set them."""
    return batch["counts"] if "counts" in batch else objective.counts(batch)


def valid_targets(targets: Int[Tensor, "*rows"]) -> Float[Tensor, ""]:
    """Count the targets that are not masked."""
    return (targets != IGNORED).sum().float()


def target_nats(
    logits: Float[Tensor, "*rows V"], targets: Int[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """Return the cross-entropy of each target in nats; 0 where there is none."""
    nats = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view_as(targets)


def mean_over(count: Float[Tensor, ""], nats: Float[Tensor, "*rows"]) -> Float[Tensor, ""]:
    """Return the sum divided by the global `count` of valid targets."""
    # A mean count over micro-batches may lie below 1; without any target, 0 / 0 must not be NaN.
    return nats.sum() / count.clamp(min=1e-6)


def readout_loss(
    readout: nn.Module,
    memory: Float[Tensor, "B L K D"],
    batch: Batch,
    count: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of the next target alone, divided by `count`.

    The readout sees all memories, or those of the positions that are `asked`.
    """
    targets = batch["targets"]
    if "asked" in batch:
        asked = batch["asked"]
        memory = memory.take_along_dim(asked[..., None, None], dim=1)
        targets = targets.take_along_dim(asked, dim=1)
    logits = readout(memory.flatten(0, 1))[:, 0]
    return mean_over(count, target_nats(logits, targets.flatten()))


def previous(memory: Float[Tensor, "B L K D"]) -> Float[Tensor, "B L K D"]:
    """Return m_{-1}..m_{L-2}: the memories one step back, beginning with the empty one."""
    return torch.cat((torch.zeros_like(memory[:, :1]), memory[:, :-1]), dim=1)


def apply_cell(
    cell: nn.Module, memory: Float[Tensor, "B T K D"], tokens: Int[Tensor, "B T"]
) -> Float[Tensor, "B T K D"]:
    """Apply the cell to all (sequence, timestep) pairs as one batch."""
    return cell(memory.flatten(0, 1), tokens.flatten()).view_as(memory)


def hashed(*keys: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """Mix integers into uniform 62-bit ones (SplitMix64); equal keys, equal result, on any rank."""
    state: Tensor | int = 0
    for key in keys:
        state = torch.as_tensor(key, dtype=torch.int64) + state
        state = state * -7046029254386353131
        state = (state ^ (state >> 30 & (1 << 34) - 1)) * -4658895280553007687
        state = (state ^ (state >> 27 & (1 << 37) - 1)) * -7723592293110705685
        state = state ^ (state >> 31 & (1 << 33) - 1)
    assert isinstance(state, Tensor)
    return state & ((1 << 62) - 1)
