"""Sequences cut into parts of equal length, which an RNN is rolled on through all at once.

Shapes: B sequences, L timesteps, N parts of T timesteps, K memory tokens, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smt_ray.model.rnn import RNN


def unrolled(
    rnn: RNN, starts: Float[Tensor, "B N K D"], inputs: Int[Tensor, "B L"], span: int
) -> Float[Tensor, "B L K D"]:
    """Return the memory after each input; part n starts from `starts[:, n]`, its gradient too."""
    rolled = roll(rnn, starts.flatten(0, 1), _cut(inputs, span))
    return _joined(rolled[:, 1:], inputs)


@torch.no_grad()
def advanced(
    rnn: RNN, starts: Float[Tensor, "B N K D"], inputs: Int[Tensor, "B L"], span: int
) -> Float[Tensor, "B L K D"]:
    """Return the memory before each input without a gradient: `starts`, and all on the way."""
    rolled = roll(rnn, starts.flatten(0, 1), _cut(inputs, span)[:, :-1])
    return _joined(rolled, inputs)


def roll(
    rnn: RNN, memory: Float[Tensor, "N K D"], inputs: Int[Tensor, "N T"]
) -> Float[Tensor, "N T_plus_1 K D"]:
    """Return `memory`, and the memory after each input."""
    memories = [memory]
    for token in inputs.unbind(1):
        memories.append(rnn.step(memories[-1], token).to(memory.dtype))  # autocast may round it
    return torch.stack(memories, dim=1)


def _cut(inputs: Int[Tensor, "B L"], span: int) -> Int[Tensor, "N T"]:
    """Cut all sequences into parts of `span` inputs, at most L; the last one is filled up."""
    span = min(span, inputs.shape[1])
    return F.pad(inputs, (0, -inputs.shape[1] % span)).view(-1, span)


def _joined(
    parts: Float[Tensor, "N T K D"], inputs: Int[Tensor, "B L"]
) -> Float[Tensor, "B L K D"]:
    """Put the memories of all parts together again, without what was filled up."""
    batch, length = inputs.shape
    return parts.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]
