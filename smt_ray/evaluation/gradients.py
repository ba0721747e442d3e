"""How far a gradient reaches: ||dL/dm_t|| by timestep, for BPTT and for supervised memory training.

Unrolled, m_t moves the loss only through all later steps, and the gradient shrinks or grows with
each. In SMT every m_t stands beside its own losses, so that the path is as short at every t.

Shapes: B sequences, L sequence, K memory tokens, D width, F horizon, N memories.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from smt_ray.config import LossConfig
from smt_ray.evaluation.budget import memories_at_once
from smt_ray.evaluation.next_k import ahead
from smt_ray.model.blocks import Block
from smt_ray.model.decoder import Decoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.objective import IGNORED, apply_cell, previous


def last_only(targets: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Return the targets without all but the last one of each sequence."""
    timesteps = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    last = (timesteps * (targets != IGNORED)).argmax(1, keepdim=True) + 1
    return targets.masked_fill(timesteps != last, IGNORED)


def unrolled_gradients(
    rnn: RNN, inputs: Int[Tensor, "B L"], targets: Int[Tensor, "B L"]
) -> Float[Tensor, " L"]:
    """Return ||dL/dm_t||, a mean over sequences, of the RNN unrolled from the empty memory.

    L is the cross-entropy in nats, summed over the targets of a sequence. Each step is taken once
    more on the way back, so that the activations of one step are held, not those of all.
    """
    with torch.no_grad():
        memory = rnn.rollout(inputs)
    read = _decoded(rnn.readout, memory.flatten(0, 1), targets.flatten()[:, None])
    gradient = read.view_as(memory)
    for t in range(inputs.shape[1] - 1, 0, -1):
        with torch.enable_grad():
            before = memory[:, t - 1].detach().requires_grad_()
            after = rnn.step(before, inputs[:, t])
            (reached,) = torch.autograd.grad(after, before, gradient[:, t])
        gradient[:, t - 1] += reached
    return _norms(gradient)


def supervised_gradients(
    memory: Float[Tensor, "B L K D"],
    decoder: Decoder,
    cell: nn.Module,
    inputs: Int[Tensor, "B L"],
    targets: Int[Tensor, "B L"],
    loss: LossConfig,
) -> Float[Tensor, " L"]:
    """Return ||dL/dm_t||, a mean over sequences, with every m_t a leaf, at all timesteps.

    L is the weighted sum of Eq. 2, the cross-entropy in nats summed over the F targets from t on,
    and Eq. 3, the mean squared error of the cell, for which m_t is an input and a label: those
    of the paper, without what `loss` may change (whitening, a gradient that waits or is cut).

    Args:
        memory: the encoder's memories.
        decoder: the network that predicts y_t..y_{t+F-1} from m_t and the inputs after x_t.
        cell: the one-step update.
        inputs: x_0..x_{L-1}.
        targets: y_0..y_{L-1}; -100 where there is none.
        loss: weights and F.
    """
    following = ahead(inputs, loss.horizon, 0)[..., 1:].flatten(0, 1)
    wanted = ahead(targets, loss.horizon, IGNORED).flatten(0, 1)
    timesteps = torch.arange(memory.shape[1], device=memory.device).repeat(len(memory))
    read = _decoded(decoder, memory.flatten(0, 1), wanted, following, timesteps)
    gradient = read.view_as(memory)
    slots, width = memory.shape[2:]
    size = memories_at_once(
        len(memory) * slots, width, 0, memory.device, saved_blocks=_blocks(cell)
    )
    for start in range(0, memory.shape[1], size):
        part = slice(start, min(start + size, memory.shape[1]))
        earlier, own = _dynamics(cell, memory, inputs, part, loss.dynamics)
        gradient[:, part] += own
        if start:
            gradient[:, start - 1 : part.stop - 1] += earlier
        else:  # before the first memory is the empty one
            gradient[:, : part.stop - 1] += earlier[:, 1:]
    return _norms(gradient)


@torch.enable_grad()
def _dynamics(
    cell: nn.Module,
    memory: Float[Tensor, "B L K D"],
    inputs: Int[Tensor, "B L"],
    part: slice,
    weight: float,
) -> tuple[Float[Tensor, "B T K D"], Float[Tensor, "B T K D"]]:
    """Return the gradients of Eq. 3 at some timesteps, by m_{t-1} and by m_t."""
    before = previous(memory[:, : part.stop])[:, part].detach().requires_grad_()
    label = memory[:, part].detach().requires_grad_()
    error = F.mse_loss(apply_cell(cell, before, inputs[:, part]), label, reduction="sum")
    per_memory = memory[0, 0].numel()
    earlier, own = torch.autograd.grad(weight * error / per_memory, (before, label))
    return earlier, own


@torch.enable_grad()
def _decoded(
    decoder: Decoder,
    memory: Float[Tensor, "N K D"],
    targets: Int[Tensor, "N F"],
    *inputs: Int[Tensor, "N ..."],
) -> Float[Tensor, "N K D"]:
    """Return the gradient by each memory of the cross-entropy of its F targets, a part at a time.

    Args:
        decoder: the network that predicts the targets.
        memory: m_t.
        targets: y_t..y_{t+F-1}; -100 where there is none.
        *inputs: x_{t+1}..x_{t+F-1} and t, which the decoder needs if F > 1.
    """
    horizon, (slots, width) = targets.shape[1], memory.shape[1:]
    logits = horizon * len(decoder.logits.weight)
    size = memories_at_once(
        slots + horizon, width, logits, memory.device, saved_blocks=_blocks(decoder)
    )
    found: list[Tensor] = []
    for start in range(0, len(memory), size):
        part = slice(start, start + size)
        own = memory[part].detach().requires_grad_()
        logits = decoder(own, *(values[part] for values in inputs))
        nats = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets[part].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        found += torch.autograd.grad(nats, own)
    return torch.cat(found)


def _blocks(module: nn.Module) -> int:
    """Return the blocks of a network; 1 of one that has none."""
    return sum(isinstance(part, Block) for part in module.modules()) or 1


def _norms(gradient: Float[Tensor, "B L K D"]) -> Float[Tensor, " L"]:
    return gradient.flatten(2).norm(dim=2).mean(0).cpu()
