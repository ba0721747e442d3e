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
from smt_ray.evaluation.foresight import TOKENS, ahead
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

    L is the cross-entropy in nats, summed over the targets of a sequence.
    """
    with torch.enable_grad():
        memory, memories = rnn.initial(len(inputs)).requires_grad_(), []
        for token in inputs.unbind(1):
            memory = rnn.step(memory, token)
            memories.append(memory)
        logits = rnn.readout(torch.stack(memories, dim=1).flatten(0, 1))
        gradients = torch.autograd.grad(_nats(logits[:, 0], targets.flatten()), memories)
    return _norms(torch.stack(gradients, dim=1))


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
    size = max(1, TOKENS // (memory.shape[2] + loss.horizon))
    with torch.enable_grad():
        leaf = memory.detach().clone().requires_grad_()
        error = F.mse_loss(apply_cell(cell, previous(leaf), inputs), leaf, reduction="sum")
        per_memory = memory[0, 0].numel()
        (gradient,) = torch.autograd.grad(loss.dynamics * error / per_memory, leaf)
        decoded = []
        timesteps = torch.arange(memory.shape[1], device=memory.device).repeat(len(memory))
        for part, after, at, answer in zip(
            memory.detach().flatten(0, 1).split(size),
            following.split(size),
            timesteps.split(size),
            wanted.split(size),
            strict=True,
        ):
            own = part.clone().requires_grad_()
            nats = _nats(decoder(own, after, at).flatten(0, 1), answer.flatten())
            decoded += torch.autograd.grad(loss.decoding * nats, own)
    return _norms(gradient + torch.cat(decoded).view_as(gradient))


def _nats(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def _norms(gradient: Float[Tensor, "B L K D"]) -> Float[Tensor, " L"]:
    return gradient.flatten(2).norm(dim=2).mean(0).cpu()
