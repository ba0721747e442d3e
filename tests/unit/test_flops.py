"""The stages' FLOPs, against torch's counter on the objectives themselves."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smt_ray.config import (
    DataConfig,
    DmtConfig,
    ExperimentalConfig,
    LossConfig,
    ModelConfig,
    OptionalStageConfig,
    RunConfig,
)
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.studies.flops import networks, sequence_flops, validation_flops
from tests.samples import random_weights

B, L, V = 3, 24, 17
MODEL = ModelConfig(
    width=32, memory_tokens=4, heads=4, encoder_depth=2, decoder_depth=2, cell_depth=2
)
CONFIG = RunConfig(
    data=DataConfig(sequence_length=L),
    model=MODEL,
    loss=LossConfig(timesteps=5, horizon=8),
    bptt=OptionalStageConfig(steps=1),
)
SPARSE = replace(CONFIG, experimental=ExperimentalConfig(dense=False))
PAPERS = replace(CONFIG, model=replace(MODEL, encoder="bidirectional"))
ROLLED = replace(CONFIG, dmt=DmtConfig(mode="sequential"))


def teacher(config):
    return Teacher(config.model, config.loss, V, 0, dense=config.dense)


CASES = {
    "teacher": (CONFIG, teacher),
    "teacher with absolute positions": (CONFIG.override("model.absolute_positions", True), teacher),
    "teacher of sampled memories": (SPARSE, teacher),
    "teacher of all pairs": (CONFIG.override("loss.dense_dynamics", True), teacher),
    "teacher of whitened directions": (
        CONFIG.override("loss.whiten_dynamics", "directions"),
        teacher,
    ),
    "teacher of the paper": (PAPERS, teacher),
    "transition": (CONFIG, lambda config: Transition(config.rnn_model, V)),
    "transition of an mlp": (
        CONFIG.override("transition.cell", "mlp"),
        lambda config: Transition(config.rnn_model, V),
    ),
    "dmt": (CONFIG, lambda config: Dmt(config.rnn_model, config.dmt, V)),
    "dmt sequential": (ROLLED, lambda config: Dmt(config.rnn_model, config.dmt, V)),
    "dmt of a depth": (
        CONFIG.override("dmt.depth", 5),
        lambda config: Dmt(config.rnn_model, config.dmt, V),
    ),
    "dmt unrolled": (
        CONFIG.override("dmt.depth", 5).override("dmt.unroll", True),
        lambda config: Dmt(config.rnn_model, config.dmt, V),
    ),
    "dmt unrolled in a rollout": (
        ROLLED.override("dmt.depth", 5).override("dmt.unroll", True),
        lambda config: Dmt(config.rnn_model, config.dmt, V),
    ),
    "bptt": (CONFIG, lambda config: Bptt(config.rnn_model, config.unroll, V)),
}


def batch():
    tokens = torch.randint(V, (B, L + 1))
    memory = torch.randn(B, L, MODEL.memory_tokens, MODEL.width)
    return {
        "sequence_id": torch.arange(B),
        "step": torch.tensor(0),
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "memory": memory,
        "state": memory,
    }


def counted(call):
    """Count without a fused attention, whose backward pass computes its scores once more."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_what_torch_counts(case):
    config, build = CASES[case]
    objective = random_weights(build(config))
    found = B * sequence_flops(config, V)[case.split()[0]]
    expected = counted(lambda: objective(batch())["loss"].backward())
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("stage", ["teacher", "transition", "dmt", "bptt"])
def test_a_validation_costs_what_torch_counts(stage):
    config, build = CASES[stage]
    objective = random_weights(build(config))
    with torch.no_grad():
        expected = counted(lambda: objective.validate(batch()))
    assert B * validation_flops(config, V)[stage] == pytest.approx(expected, rel=0.01)


def test_weights_are_those_that_are_trained():
    found = networks(CONFIG, V).parameters
    for stage in ("teacher", "transition", "dmt", "bptt"):
        config, build = CASES[stage]
        assert found[stage] == sum(p.numel() for p in build(config).parameters())
    assert found["labels"] == sum(p.numel() for p in teacher(CONFIG).encoder.parameters())
