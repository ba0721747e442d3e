"""ZeRO stages, accumulation and portable checkpoints on two gloo ranks, and on one."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file

from smt_ray.config import (
    BpttConfig,
    DataConfig,
    DmtConfig,
    LossConfig,
    Precision,
    RunConfig,
    TrainConfig,
    TransitionConfig,
)
from smt_ray.data.storage import Location
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.train.checkpoint import Checkpoint
from smt_ray.train.programs import BpttProgram, DmtProgram, TeacherProgram, TransitionProgram
from tests.dist.ranks import Runs, launch, train, train_plainly
from tests.samples import MODEL, VOCABULARY, random_weights, rows, write

pytestmark = pytest.mark.dist

L, HALF, STEPS, STAGES, ENDS = 8, 4, 8, (0, 1, 2, 3), (0, 3)
CLIP = 0.05
APART = {"norm/cell", "norm/rest"}


@dataclass(frozen=True)
class Work:
    """A place with shards and weights, and the programs that read them."""

    place: Path

    def config(
        self,
        precision: Precision = "float32",
        uniformity: float = 0.1,
        mode: Literal["parallel", "sequential"] = "parallel",
    ) -> RunConfig:
        settings = TrainConfig(
            steps=STEPS,
            global_batch=8,
            learning_rate=1e-2,
            warmup_fraction=0.3,
            clip_norm=CLIP,
            precision=precision,
            schedule="cosine",
        )
        return RunConfig(
            data=DataConfig(sequence_length=L),
            model=MODEL,
            loss=LossConfig(timesteps=3, horizon=4, uniformity=uniformity, dynamics=1.0),
            teacher=settings,
            transition=TransitionConfig(train=settings),
            dmt=DmtConfig(train=settings, mode=mode, visits=2.0, windows=2),
            bptt=BpttConfig(train=settings, mode="parallel", span=3, windows=2, visits=2.0),
        )

    def prepare(self) -> None:
        """Write shards and the weights that the later programs begin with."""
        for split in ("train", "validation"):
            write(Location.of(self.place / "tokens" / split), rows(60, L), files=2, group=7)
            write(Location.of(self.place / "labels" / split), rows(60, L, MODEL), MODEL, files=2)
        teacher = random_weights(Teacher(MODEL, self.config().loss, VOCABULARY, 0))
        transition = random_weights(Transition(MODEL, VOCABULARY))
        for name, module in (("teacher", teacher), ("transition", transition)):
            (self.place / name).mkdir()
            save_file(module.state_dict(), self.place / name / "model.safetensors")

    def teacher(self, **changes):
        return TeacherProgram(
            self.config(**changes), Location.of(self.place / "tokens"), VOCABULARY
        )

    def bptt(self, **changes):
        return BpttProgram(self.config(**changes), Location.of(self.place / "tokens"), VOCABULARY)

    def transition(self, **changes):
        labels, teacher = (Location.of(self.place / name) for name in ("labels", "teacher"))
        return TransitionProgram(self.config(**changes), labels, {}, teacher, VOCABULARY)

    def dmt(self, **changes):
        names = ("labels", "teacher", "transition")
        labels, teacher, transition = (Location.of(self.place / name) for name in names)
        config = self.config(**changes)
        return DmtProgram(config, labels, {}, teacher, transition, VOCABULARY)


def on_two_ranks(work: Work) -> Runs:
    """Everything that takes two ranks, in one start of them."""
    runs, place = {}, work.place
    for stage in STAGES:
        program = work.teacher()
        saved = place / f"zero-{stage}"
        runs[f"teacher, ZeRO {stage}"] = train(
            program, STEPS, directory=saved, zero_stage=stage, micro_batch=2
        )
    for stage in ENDS:
        at = functools.partial(train, zero_stage=stage, micro_batch=2)
        runs[f"dmt, ZeRO {stage}"] = at(work.dmt(), STEPS)
        runs[f"sequential, ZeRO {stage}"] = at(work.dmt(mode="sequential"), STEPS)
        runs[f"bptt, ZeRO {stage}"] = at(work.bptt(), STEPS)
    alike = {
        "teacher": work.teacher(uniformity=0.0),
        "transition": work.transition(),
        "dmt": work.dmt(),
        "bptt": work.bptt(),
    }
    for name, program in alike.items():
        runs[f"{name}, 4"] = train(program, STEPS, micro_batch=4)
        runs[f"{name}, 2 x 2"] = train(program, STEPS, micro_batch=2)

    runs["transition, half"] = train(
        work.transition(), HALF, directory=place / "half", zero_stage=3, micro_batch=2
    )
    for stage in ENDS:
        program, saved = work.dmt(precision="bfloat16"), place / f"bfloat16-{stage}"
        at = functools.partial(train, program, zero_stage=stage, micro_batch=2)
        runs[f"bfloat16 {stage}"] = at(STEPS)
        runs[f"bfloat16 {stage}, half"] = at(HALF, directory=saved)
        runs[f"bfloat16 {stage}, rest"] = at(STEPS, directory=saved)
    for name, program in (("dmt", work.dmt()), ("bptt", work.bptt())):
        runs[f"{name}, half"] = train(program, HALF, directory=place / name, micro_batch=2)
    return runs


def on_one_rank(work: Work) -> Runs:
    """Go on alone from what two ranks saved; and with DeepSpeed, with torch alone."""
    runs = {"transition, rest": train(work.transition(), STEPS, directory=work.place / "half")}
    alike = {"transition": work.transition(), "dmt": work.dmt(), "bptt": work.bptt()}
    for name, program in alike.items():
        runs[name] = train(program, STEPS, micro_batch=8)
    for name in ("dmt", "bptt"):
        saved = work.place / name
        runs[f"{name}, rest"] = train(alike[name], STEPS, directory=saved, micro_batch=8)
    both = {"teacher": work.teacher(), "bfloat16": work.dmt(precision="bfloat16")}
    for name, program in (alike | both).items():
        runs[f"{name}, DeepSpeed"] = train(program, STEPS, micro_batch=4)
        runs[f"{name}, plain"] = train_plainly(program, 4)
    return runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def runs(place):
    work = Work(place / "work")
    for name in ("work", "two", "one"):
        (place / name).mkdir()
    work.prepare()
    two = launch(on_two_ranks, 2, place / "two", work)
    return two | launch(on_one_rank, 1, place / "one", work)


def same(one, other):
    """Require equal figures at every step, and equal validation; a norm adds up more rounding.

    DeepSpeed's sharded gradients have a joint norm only.
    """
    assert set(one) - APART == set(other) - APART
    for name, values in one.items():
        if name in APART and name not in other:
            continue
        tolerance = 1e-4 if name == "norm/gradient" else 1e-5
        assert values == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize(
    ("objective", "stage"),
    [
        ("teacher", 1),
        ("teacher", 2),
        ("teacher", 3),
        *((name, 3) for name in ("dmt", "sequential", "bptt")),
    ],
)
def test_zero_stages_agree(runs, objective, stage):
    plain = runs[f"{objective}, ZeRO 0"]
    assert len(plain["loss/total"]) == STEPS
    assert min(plain["norm/gradient"]) > CLIP  # every step was clipped
    assert plain["loss/total"][-1] < plain["loss/total"][0]
    same(runs[f"{objective}, ZeRO {stage}"], plain)


def test_zero_stages_reach_the_same_weights(runs, place):
    saved = [Checkpoint(place / "work" / f"zero-{stage}").weights() for stage in STAGES]
    for weights in saved[1:]:
        assert set(weights) == set(saved[0])
        for name, value in weights.items():
            torch.testing.assert_close(value, saved[0][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", ["teacher", "transition", "dmt", "bptt"])
def test_accumulated_micro_batches_are_one_batch(runs, objective):
    two, one = (dict(runs[f"{objective}, {cut}"]) for cut in ("2 x 2", "4"))
    if objective == "teacher":  # Eq. 4, here of weight 0, compares inside one micro-batch
        for run in (two, one):
            del run["loss/unif"], run["validation"]["validation/unif"]
    if objective == "dmt":
        drifts = {name for name in one["validation"] if name.startswith("drift/")}
        assert {"drift/rollout", "drift/staleness", "drift/age_001"} <= drifts
    same(*map(without_drift, (two, one)))


def without_drift(run):
    """Leave NMSE out: its variance is that over the sequences of a micro-batch."""
    kept = {k: v for k, v in run["validation"].items() if not k.startswith("drift/")}
    return {**run, "validation": kept}


@pytest.mark.parametrize("objective", ["transition", "dmt", "bptt"])
def test_two_ranks_are_one_to_the_last_step(runs, objective):
    """Windows in flight too: which of them a step visits depends on no world size."""
    same(*(without_drift(runs[name]) for name in (f"{objective}, 4", objective)))


@pytest.mark.parametrize("objective", ["transition", "dmt", "bptt"])
def test_one_rank_goes_on_as_the_two_that_saved(runs, objective):
    half, rest, whole = (runs[f"{objective}{part}"] for part in (", half", ", rest", ", 4"))
    joined = {name: half[name] + rest[name] for name in whole if name != "validation"}
    same(*map(without_drift, (joined | {"validation": rest["validation"]}, whole)))


@pytest.mark.parametrize("objective", ["teacher", "transition", "dmt", "bptt", "bfloat16"])
def test_torch_alone_gives_the_numbers_of_deepspeed(runs, objective):
    deepspeed, plain = (runs[f"{objective}, {engine}"] for engine in ("DeepSpeed", "plain"))
    assert APART & set(plain) == APART & set(deepspeed)
    same(plain, deepspeed)


@pytest.mark.parametrize("stage", ENDS)
def test_bfloat16_goes_on_as_if_nothing_happened(runs, stage):
    half, rest, whole = (runs[f"bfloat16 {stage}{part}"] for part in (", half", ", rest", ""))
    joined = {name: half[name] + rest[name] for name in whole if name != "validation"}
    same(joined | {"validation": rest["validation"]}, whole)
    exact = runs[f"dmt, ZeRO {stage}"]["loss/total"]
    assert whole["loss/total"] != exact
    assert whole["loss/total"] == pytest.approx(exact, rel=0.02)
