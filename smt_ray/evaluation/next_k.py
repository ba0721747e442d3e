"""What a memory tells of later targets: the decoder on y_{t+i} from m_t and the inputs in between.

A teacher may tell each next target by looking back to the inputs, without a memory that held it
before. An RNN cannot: what m_t does not hold is lost to it. This shows what m_t is known to hold.
It is no bound: a cell may find what the decoder does not.

Shapes: B sequences, L sequence, K memory tokens, D width, F horizon.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smt_ray.evaluation.budget import memories_at_once
from smt_ray.evaluation.scores import Score, nats_and_hits
from smt_ray.model.decoder import Decoder
from smt_ray.objectives.objective import IGNORED


def ahead(values: Int[Tensor, "B L"], horizon: int, fill: int) -> Int[Tensor, "B L F"]:
    """Return values_t..values_{t+F-1} for every t, `fill` past the end."""
    return F.pad(values, (0, horizon - 1), value=fill).unfold(1, horizon, 1)


def next_k(
    memory: Float[Tensor, "B L K D"],
    decoder: Decoder,
    inputs: Int[Tensor, "B L"],
    targets: Int[Tensor, "B L"],
    horizon: int,
    units: float = 1.0,
) -> Score:
    """Score the decoder on y_{t+i} from m_t, over all t; positions of the score are i = 0..F-1.

    Args:
        memory: m_0..m_{L-1}, of an encoder or of an RNN.
        decoder: the network that predicts y_t..y_{t+F-1} from m_t and the inputs after x_t.
        inputs: x_0..x_{L-1}.
        targets: y_0..y_{L-1}; -100 where there is none.
        horizon: F.
        units: bytes or pixels that a target covers, on average.
    """
    following = ahead(inputs, horizon, 0)[..., 1:].flatten(0, 1)
    wanted = ahead(targets, horizon, IGNORED).flatten(0, 1)
    timesteps = torch.arange(inputs.shape[1], device=inputs.device).repeat(len(inputs))
    slots, width = memory.shape[2:]
    logits = horizon * len(decoder.logits.weight)
    size = memories_at_once(slots + horizon, width, logits, memory.device)
    score = Score()
    for own, after, at, answer in zip(
        memory.flatten(0, 1).split(size),
        following.split(size),
        timesteps.split(size),
        wanted.split(size),
        strict=True,
    ):
        asked = answer != IGNORED
        found = torch.zeros(3, *answer.shape, dtype=torch.float64, device=answer.device)
        found[:2, asked] = nats_and_hits(decoder(own, after, at)[asked].float(), answer[asked])
        found[2] = asked
        score.tally(found, 0)
    score.covered = round(units * float(score.sums[2].sum()))
    return score
