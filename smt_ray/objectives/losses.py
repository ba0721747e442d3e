"""The losses of Supervised Memory Training (arXiv:2606.06479).

Shapes: M memories (or sequences), T timesteps, K memory tokens, D width, P sampled pairs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PAIRS = 512
"""Pairs compared by the uniformity loss."""
VARIANCE_FLOOR = 0.01
"""Added to the variance by which dynamics are divided; that of a normalised memory is <= 1."""
COVARIANCE_FLOOR = 0.001
"""Added to the variance of every direction in which dynamics are whitened."""
RELATIVE_FLOOR = 1e-10
"""Added as well, times the mean variance, so that float64 has the digits to factorise any size."""


def squared_error(
    predicted: Float[Tensor, "*rows K D"],
    label: Float[Tensor, "*rows K D"],
    count: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Sum the squared error over memories, divided by `count` numbers (Eq. 3)."""
    return (predicted.float() - label.float()).square().sum() / count


def slot_deviation(memory: Float[Tensor, "M T K D"]) -> Float[Tensor, "K 1"]:
    """Return the standard deviation over M sequences of each memory slot, with a floor.

    The variance is that over sequences at each of T timesteps, the mean of which is taken: a memory
    that tells the time and nothing else has none. (Where each sequence has timesteps of its own, as
    sampled ones are, time counts all the same.) The gradient counts: an error divided by the result
    does not gain from a smaller memory; divided by the same number without gradient it gains the
    more, the smaller the memory is already (docs/log.md).
    """
    variance = memory.float().var(0).mean((0, -1))
    return (variance[:, None] + VARIANCE_FLOOR).sqrt()


def whitener(memory: Float[Tensor, "M T K D"]) -> Float[Tensor, "K D D"]:
    """Return the Cholesky factor of each slot's covariance over all M * T memories, with a floor.

    As in `slot_deviation` the gradient counts, so that no direction gains by varying less. In
    float64 under autocast, too: rounded to fewer digits a covariance need not be positive definite.
    Finite memories of any size and rank have a factor; that of others is NaN, which the training
    loop reports by step.
    """
    with torch.autocast(memory.device.type, enabled=False):
        slots = memory.double().flatten(0, 1).transpose(0, 1)
        centred = slots - slots.mean(1, keepdim=True)
        covariance = centred.mT @ centred / slots.shape[1]
        variance = covariance.diagonal(dim1=1, dim2=2)
        floor = COVARIANCE_FLOOR + RELATIVE_FLOOR * variance.mean(1, keepdim=True)
        covariance = covariance + floor.expand_as(variance).diag_embed()
        factor, failed = torch.linalg.cholesky_ex(covariance)
        return factor.masked_fill(failed[:, None, None] > 0, torch.nan).to(torch.float32)


def whiten(
    memory: Float[Tensor, "*rows K D"], factor: Float[Tensor, "K D D"]
) -> Float[Tensor, "*rows K D"]:
    """Return memories in coordinates in which all directions of a slot vary alike.

    Args:
        memory: memories, or differences of such.
        factor: what `whitener` returns.
    """
    slots = memory.float().flatten(0, -3).permute(1, 2, 0)
    return (
        torch.linalg.solve_triangular(factor, slots, upper=False).permute(2, 0, 1).view_as(memory)
    )


def uniformity(memory: Float[Tensor, "M K D"], draws: Int[Tensor, "4 P"]) -> Float[Tensor, ""]:
    """Return log E exp(-2 |a - b|^2) over pairs of L2-normalised memory tokens (Eq. 4).

    Args:
        memory: memories, the empty one not among them.
        draws: random non-negative integers that choose (memory, slot) of both tokens of each pair.
    """
    rows, slots = memory.shape[:2]
    first, first_slot, second, second_slot = draws
    first, second = first % rows, second % rows
    first_slot, second_slot = first_slot % slots, second_slot % slots
    tokens = F.normalize(memory.float(), dim=-1)
    distance = (tokens[first, first_slot] - tokens[second, second_slot]).square().sum(-1)
    same = (first == second) & (first_slot == second_slot)
    return torch.logsumexp((-2 * distance).masked_fill(same, -torch.inf), 0) - (~same).sum().log()
