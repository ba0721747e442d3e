"""A step asks the device nothing: each objective runs on tensors that have shapes and no values.

`.item()`, `nonzero` and the like, on which a GPU would wait, raise there.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from smt_ray.config import DmtConfig, LossConfig, UnrollConfig
from smt_ray.data.rows import asked
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import previous
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from tests.samples import MODEL, VOCABULARY

B, L, TARGETS = 4, 10, 3
LOSS = LossConfig(timesteps=3, horizon=4, group=B)
OBJECTIVES = {
    "teacher": lambda: Teacher(MODEL, LOSS, VOCABULARY, 0),
    "teacher directions": lambda: Teacher(
        MODEL, LossConfig(horizon=4, group=2, whiten_dynamics="directions"), VOCABULARY, 0
    ),
    "teacher slots": lambda: Teacher(
        MODEL,
        LossConfig(timesteps=L, whiten_dynamics="slots", dense_dynamics=True, dynamics_below=2.0),
        VOCABULARY,
        0,
    ),
    "transition": lambda: Transition(MODEL, VOCABULARY),
    **{
        f"dmt {how}": lambda changes=changes: Dmt(MODEL, DmtConfig(**changes), VOCABULARY)
        for how, changes in {
            "parallel": {},
            "unrolled": {"unroll": True, "depth": 5, "dynamics": 1.0, "fade": 0.5},
            "sequential": {"mode": "sequential"},
            "one_step": {"mode": "one_step"},
        }.items()
    },
    **{
        f"bptt {mode}": lambda mode=mode: Bptt(
            MODEL, UnrollConfig(mode=mode, span=L if mode == "full" else 5), VOCABULARY
        )
        for mode in ("full", "truncated", "parallel")
    },
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
        given = {n: mode.from_tensor(value) for n, value in {**real, "counts": counts}.items()}
        for result in (objective(given)["loss"], objective.validate(given)["loss"]):
            assert result.shape == ()
        objective(given)["loss"].backward()
        assert any(p.grad is not None for p in objective.parameters())


def test_values_would_be_missed():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()
