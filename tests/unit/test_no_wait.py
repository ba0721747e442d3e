"""A step asks the device nothing: each objective runs on tensors that have shapes and no values.

`.item()`, `nonzero` and the like, on which a GPU would wait, raise there.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from smt_ray.config import DmtConfig, LossConfig, UnrollConfig
from smt_ray.data.rows import asked
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import Batch, Objective, previous
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from tests.samples import MODEL, VOCABULARY

B, L, TARGETS = 4, 10, 3
LOSS = LossConfig(timesteps=3, horizon=4, group=B)
DIRECTIONS = LossConfig(horizon=4, group=2, whiten_dynamics="directions")
SLOTS = LossConfig(timesteps=L, whiten_dynamics="slots", dense_dynamics=True, dynamics_below=2.0)
UNROLLED = DmtConfig(unroll=True, depth=5, dynamics=1.0, fade=0.5)
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "teacher": partial(Teacher, MODEL, LOSS, VOCABULARY, 0),
    "teacher directions": partial(Teacher, MODEL, DIRECTIONS, VOCABULARY, 0),
    "teacher slots": partial(Teacher, MODEL, SLOTS, VOCABULARY, 0),
    "transition": partial(Transition, MODEL, VOCABULARY),
    "dmt parallel": partial(Dmt, MODEL, DmtConfig(), VOCABULARY),
    "dmt unrolled": partial(Dmt, MODEL, UNROLLED, VOCABULARY),
    "dmt sequential": partial(Dmt, MODEL, DmtConfig(mode="sequential"), VOCABULARY),
    "dmt one_step": partial(Dmt, MODEL, DmtConfig(mode="one_step"), VOCABULARY),
    "bptt full": partial(Bptt, MODEL, UnrollConfig(mode="full", span=L), VOCABULARY),
    "bptt truncated": partial(Bptt, MODEL, UnrollConfig(mode="truncated", span=5), VOCABULARY),
    "bptt parallel": partial(Bptt, MODEL, UnrollConfig(mode="parallel", span=5), VOCABULARY),
}


def batch(*, sparse):
    tokens = torch.randint(VOCABULARY, (B, L + 1))
    memory = torch.randn(B, L, MODEL.memory_tokens, MODEL.width)
    found = {
        "sequence_id": torch.arange(B),
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:].clone(),
        "memory": memory,
        "state": previous(memory),
        "step": torch.tensor(3),
        "progress": torch.tensor(0.1),
    }
    if sparse:
        found["targets"][:, TARGETS:] = -100
        found["asked"] = asked(found["targets"], TARGETS)
    return found


@pytest.mark.parametrize("sparse", [False, True], ids=["text", "few targets"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_value_is_asked_for(name, sparse):
    real = batch(sparse=sparse)
    counts = OBJECTIVES[name]().counts(real)
    with FakeTensorMode() as mode:
        objective = OBJECTIVES[name]()
        given: Batch = {n: mode.from_tensor(v) for n, v in {**real, "counts": counts}.items()}
        for result in (objective(given)["loss"], objective.validate(given)["loss"]):
            assert result.shape == ()
        objective(given)["loss"].backward()
        assert any(p.grad is not None for p in objective.parameters())


def test_values_would_be_missed():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()
