"""Twenty losses of every objective, to full precision: what should not change them must not.

The numbers are those of one torch thread in fp32. Kernels differ between processors: with and
without vector instructions, in torch and in MKL, the losses differ by up to 3e-7. A change of the
method differs by far more than the tolerance. `pytest tests/golden --update-golden` rewrites the
file.
"""

import json
from pathlib import Path

import pytest
import torch

from smt_ray.config import DmtConfig, LossConfig, ModelConfig, UnrollConfig
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import previous
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition

FILE = Path(__file__).with_name("losses.json")
TOLERANCE = 1e-5
EPSILON = 1e-4
"""AdamW's. With its default of 1e-8 a gradient that is zero but for rounding makes a whole step, in
a direction that depends on the processor: losses then differ by up to 2e-3."""
B, L, V, STEPS = 8, 24, 32, 20
MODEL = ModelConfig(
    width=32, memory_tokens=4, heads=4, encoder_depth=2, register_depth=2, decoder_depth=2
)
SLOTS = {"whiten_dynamics": "slots", "dense_dynamics": True, "dynamics": 1.0, "dynamics_below": 4.0}


def teacher(**loss):
    """Return a teacher that compares all sequences of a batch."""
    return Teacher(MODEL, LossConfig(group=B, **loss), V, seed=0)


OBJECTIVES = {
    "teacher": lambda: teacher(timesteps=4, horizon=8),
    "teacher directions": lambda: teacher(whiten_dynamics="directions"),
    "teacher slots": lambda: teacher(**SLOTS),
    "transition": lambda: Transition(MODEL, V),
    "dmt": lambda: Dmt(MODEL, DmtConfig(), V),
    "dmt unrolled": lambda: Dmt(MODEL, DmtConfig(unroll=True, depth=5, dynamics=1.0), V),
    "dmt sequential": lambda: Dmt(MODEL, DmtConfig(mode="sequential"), V),
    "dmt one_step": lambda: Dmt(MODEL, DmtConfig(mode="one_step"), V),
    "bptt": lambda: Bptt(MODEL, UnrollConfig(), V),
    "bptt truncated": lambda: Bptt(MODEL, UnrollConfig(mode="truncated", span=5), V),
    "bptt parallel": lambda: Bptt(MODEL, UnrollConfig(mode="parallel", span=5), V),
}


def batches():
    """Yield batches of counting sequences, with memories that are a fixed map of the tokens."""
    table = torch.randn(V, MODEL.memory_tokens, MODEL.width)
    for step in range(STEPS):
        start, stride = torch.randint(V, (B, 1)), torch.randint(1, 5, (B, 1))
        tokens = (start + stride * torch.arange(L + 1)) % V
        memory = torch.nn.functional.rms_norm(
            table[tokens[:, :-1]] + table[tokens[:, 1:]], (MODEL.width,)
        )
        yield {
            "sequence_id": torch.arange(B) + step * B,
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "memory": memory,
            "state": previous(memory),
            "step": torch.tensor(step),
        }


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_losses_are_those_on_file(name, update_golden):
    objective = OBJECTIVES[name]()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, eps=EPSILON)
    losses = []
    for batch in batches():
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    if not name.startswith("bptt"):  # which learns nothing yet in so few steps
        assert losses[-1] < losses[0]
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if update_golden:
        FILE.write_text(json.dumps({**known, name: losses}, indent=1, sort_keys=True) + "\n")
    else:
        assert losses == pytest.approx(known[name], rel=TOLERANCE)
