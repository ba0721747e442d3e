"""Arithmetic of the stages: floating-point operations of matrix products and attention.

Torch's own counter runs each network once on the `meta` device, which computes nothing; how often a
stage calls each network is said here. A multiplication with its addition is two operations, causal
attention counts as full attention, and a backward pass as two forward passes. Recomputation counts
nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smt_ray.config import DmtConfig, RunConfig
from smt_ray.model.cells import build_cell
from smt_ray.model.decoder import Decoder
from smt_ray.model.encoder import build_encoder

BACKWARD = 2
"""Forward passes that one backward pass costs."""


@dataclass(frozen=True)
class NetworkSizes:
    """Forward FLOPs of the networks, and their numbers of weights."""

    encoder: float
    """All L memories of one sequence."""
    taught: float
    """Those memories of it that the teacher's loss asks for."""
    decoder: float
    """F targets from one memory."""
    readout: float
    """The next target from one memory."""
    teacher_cell: float
    """One memory from the one before, by the teacher's cell."""
    cell: float
    """The same by the RNN's cell."""
    parameters: dict[str, int]
    """Weights that each stage trains (`labels`: that it uses)."""


@lru_cache(maxsize=64)
def networks(config: RunConfig, vocabulary: int) -> NetworkSizes:
    """Count the forward FLOPs and weights of a run's networks."""
    model, length = config.model, config.data.sequence_length
    with torch.device("meta"):
        encoder, decoder = build_encoder(model, vocabulary), Decoder(model, vocabulary)
        teacher_cell = build_cell(model, vocabulary)
        cell = build_cell(config.rnn_model, vocabulary)
        tokens = torch.zeros(1, length, dtype=torch.long)
        memory = torch.zeros(1, model.memory_tokens, model.width)
        following = tokens[:, : config.loss.horizon - 1]
        asked = None if config.dense else tokens[:, :1].expand(1, 2 * config.loss.timesteps)
    sizes = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in {"encoder": encoder, "decoder": decoder, "cell": cell}.items()
    }
    rnn = sizes["cell"] + sizes["decoder"]
    teacher = [*encoder.parameters(), *decoder.parameters(), *teacher_cell.parameters()]
    return NetworkSizes(
        encoder=_forward(encoder, lambda: encoder(tokens)),
        taught=_forward(encoder, lambda: encoder(tokens, asked)),
        decoder=_forward(decoder, lambda: decoder(memory, following, tokens[:, 0])),
        readout=_forward(decoder, lambda: decoder(memory)),
        teacher_cell=_forward(teacher_cell, lambda: teacher_cell(memory, tokens[:, 0])),
        cell=_forward(cell, lambda: cell(memory, tokens[:, 0])),
        parameters={
            "teacher": sum(p.numel() for p in teacher),
            "labels": sizes["encoder"],
            "transition": sizes["cell"],
            "dmt": rnn + sizes["decoder"],
            "finetune": rnn,
            "bptt": rnn,
        },
    )


def _forward(module: nn.Module, call: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return float(counter.get_total_flops())


def sequence_flops(config: RunConfig, vocabulary: int) -> dict[str, float]:
    """Return the FLOPs that each stage of a run spends on one sequence of training."""
    count, length = networks(config, vocabulary), config.data.sequence_length
    whole = 1 + BACKWARD
    readout = length * count.readout
    rolled = length * count.cell + readout
    flops = {
        "teacher": whole * _teacher(config, count),
        "labels": count.encoder,
        "transition": whole * length * count.cell,
        # The teacher's readout is trained beside the RNN's.
        "dmt": whole * 2 * readout + _dmt_steps(config.dmt, length) * count.cell,
    }
    unrolled = {"finetune", "bptt"} & config.stages().keys()
    return flops | dict.fromkeys(unrolled, whole * rolled)


def validation_flops(config: RunConfig, vocabulary: int) -> dict[str, float]:
    """Return the FLOPs that each trained stage spends on one sequence of validation."""
    count, length = networks(config, vocabulary), config.data.sequence_length
    rolled = length * (count.cell + count.readout)
    return {
        "teacher": _teacher(config, count),
        "transition": length * count.cell,
        "dmt": rolled,
        "finetune": rolled,
        "bptt": rolled,
    }


def _dmt_steps(dmt: DmtConfig, length: int) -> int:
    """Return the cell's forward steps in a visit of DMT; one with its gradient counts as three."""
    depth, whole = min(dmt.depth, length), 1 + BACKWARD
    parts = math.ceil(length / depth)
    if dmt.unroll:  # `sequential` rolls out to the last part first
        before = (parts - 1) * depth if dmt.mode == "sequential" else 0
        return before + whole * parts * depth
    before = {"one_step": 0, "parallel": parts * (depth - 1), "sequential": length - 1}[dmt.mode]
    return before + whole * length


def _teacher(config: RunConfig, count: NetworkSizes) -> float:
    """Return the forward FLOPs of Eq. 5 on one sequence."""
    loss, length = config.loss, config.data.sequence_length
    pairs = length if loss.dense_dynamics else loss.timesteps
    dense = length * count.readout if config.dense else 0
    covariance = 0.0
    if loss.whiten_dynamics == "directions":
        memories = length if config.dense else loss.timesteps
        covariance = 2.0 * memories * config.model.memory_tokens * config.model.width**2
    decoded = loss.timesteps * count.decoder + dense
    return count.taught + decoded + pairs * count.teacher_cell + covariance
