"""ZeRO stages, accumulation and portable checkpoints on gloo ranks: two, one, and three."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from smt_ray.config import (
    DataConfig,
    DmtConfig,
    LossConfig,
    OptimizerConfig,
    OptionalStageConfig,
    Precision,
    RunConfig,
    TeacherConfig,
    TransitionConfig,
    UnrollConfig,
)
from smt_ray.data.storage import Location
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.train.checkpoint import Checkpoint
from smt_ray.train.loop import Program
from smt_ray.train.programs import (
    BpttProgram,
    DmtProgram,
    StoredLabels,
    TeacherProgram,
    TransitionProgram,
)
from tests.dist.ranks import Runs, launch, train, train_plainly
from tests.samples import MODEL, VOCABULARY, random_weights, rows, write

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1800)]

L, HALF, STEPS, STAGES, ENDS = 8, 4, 8, (0, 1, 2, 3), (0, 3)
CLIP, GROUP = 0.05, 2
APART = {"norm/cell", "norm/rest"}
NORM = 2e-3
"""Of gradients of uneven micro-batches, which add up in another order: BPTT's differ by 3e-4."""
VALIDATIONS = {"before", "validation"}
TEACHERS = ("teacher", "whitened", "curriculum")
ALIKE = (*TEACHERS, "transition", "dmt", "bptt")


@dataclass(frozen=True)
class Work:
    """A place with shards and weights, and the programs that read them."""

    place: Path

    def config(
        self,
        precision: Precision = "float32",
        mode: Literal["parallel", "sequential"] = "parallel",
        curriculum: int = 1,
        **loss: Any,
    ) -> RunConfig:
        own: dict[str, Any] = {"steps": STEPS, "global_batch": 8, "learning_rate": 3e-4}
        shared = {"timesteps": 3, "horizon": 4, "uniformity": 0.1, "dynamics": 1.0, "group": GROUP}
        return RunConfig(
            data=DataConfig(sequence_length=L),
            model=MODEL,
            optimizer=OptimizerConfig(
                warmup_fraction=0.3,
                clip_norm=CLIP,
                precision=precision,
                schedule="cosine",
                validation_sequences=64,
            ),
            loss=LossConfig(**shared | loss),
            teacher=TeacherConfig(**own, curriculum=curriculum),
            transition=TransitionConfig(**own),
            dmt=DmtConfig(**own, mode=mode, visits=2.0),
            bptt=OptionalStageConfig(**own),
            unroll=UnrollConfig(mode="parallel", span=3, visits=2.0),
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

    def whitened(self):
        return self.teacher(whiten_dynamics="slots", dense_dynamics=True)

    def curriculum(self):
        return self.teacher(curriculum=2)

    def bptt(self, **changes):
        return BpttProgram(self.config(**changes), Location.of(self.place / "tokens"), VOCABULARY)

    def transition(self, **changes):
        labels, teacher = (Location.of(self.place / name) for name in ("labels", "teacher"))
        return TransitionProgram(
            self.config(**changes), StoredLabels(labels, {}), teacher, VOCABULARY
        )

    def dmt(self, **changes):
        names = ("labels", "teacher", "transition")
        labels, teacher, transition = (Location.of(self.place / name) for name in names)
        config = self.config(**changes)
        return DmtProgram(config, StoredLabels(labels, {}), teacher, transition, VOCABULARY)

    def alike(self) -> dict[str, Program]:
        """Return the programs that come to the same however a batch is cut."""
        return {name: getattr(self, name)() for name in ALIKE}


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
    alike = work.alike()
    for name, program in alike.items():
        runs[f"{name}, 4"] = train(program, STEPS, micro_batch=4)
        runs[f"{name}, 2 x 2"] = train(program, STEPS, micro_batch=2)

    for stage in ENDS:
        program, saved = work.dmt(precision="bfloat16"), place / f"bfloat16-{stage}"
        at = functools.partial(train, program, zero_stage=stage, micro_batch=2)
        runs[f"bfloat16 {stage}"] = at(STEPS)
        runs[f"bfloat16 {stage}, half"] = at(HALF, directory=saved)
        runs[f"bfloat16 {stage}, rest"] = at(STEPS, directory=saved)
    for name, program in alike.items():
        saved, zero = place / f"half-{name}", 3 if name == "transition" else 0
        runs[f"{name}, half"] = train(
            program, HALF, directory=saved, zero_stage=zero, micro_batch=2
        )
    return runs


def on_one_rank(work: Work) -> Runs:
    """Go on alone from what two ranks saved; and with DeepSpeed, with torch alone."""
    runs, alike = {}, work.alike()
    for name, program in alike.items():
        runs[name] = train(program, STEPS, micro_batch=8)
        saved = work.place / f"half-{name}"
        runs[f"{name}, rest"] = train(program, STEPS, directory=saved, micro_batch=8)
    for name, program in (alike | {"bfloat16": work.dmt(precision="bfloat16")}).items():
        runs[f"{name}, DeepSpeed"] = train(program, STEPS, micro_batch=4)
        runs[f"{name}, plain"] = train_plainly(program, 4)
    return runs


def on_three_ranks(work: Work) -> Runs:
    """Train in uneven shares, and go on in them from what two ranks saved."""
    runs = {}
    for name, program in work.alike().items():
        zero = 3 if name == "dmt" else 0
        runs[f"{name}, uneven"] = train(program, STEPS, micro_batch=2, zero_stage=zero)
        saved = work.place / f"uneven-{name}"
        runs[f"{name}, uneven rest"] = train(program, STEPS, directory=saved, micro_batch=2)
    return runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def runs(place):
    work = Work(place / "work")
    for name in ("work", "two", "one", "three"):
        (place / name).mkdir()
    work.prepare()
    found = launch(on_two_ranks, 2, place / "two", work)
    for name in ALIKE:
        shutil.copytree(work.place / f"half-{name}", work.place / f"uneven-{name}")
    found |= launch(on_three_ranks, 3, place / "three", work)
    return found | launch(on_one_rank, 1, place / "one", work)


def same(one, other, norm=1e-4):
    """Require equal figures at every step, and equal validation; a norm adds up more rounding.

    DeepSpeed's sharded gradients have a joint norm only.
    """
    assert set(one) - APART == set(other) - APART
    for name, values in one.items():
        if name in APART and name not in other:
            continue
        tolerance = norm if name == "norm/gradient" else 1e-5
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
    assert plain["validation"]["validation/loss"] < plain["before"]["validation/loss"]
    same(runs[f"{objective}, ZeRO {stage}"], plain)


def test_zero_stages_reach_the_same_weights(runs, place):
    saved = [Checkpoint(place / "work" / f"zero-{stage}").weights() for stage in STAGES]
    for weights in saved[1:]:
        assert set(weights) == set(saved[0])
        for name, value in weights.items():
            torch.testing.assert_close(value, saved[0][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", ALIKE)
def test_accumulated_micro_batches_are_one_batch(runs, objective):
    two, one = (dict(runs[f"{objective}, {cut}"]) for cut in ("2 x 2", "4"))
    if objective == "dmt":
        drifts = {name for name in one["validation"] if name.startswith("drift/")}
        assert {"drift/rollout", "drift/staleness", "drift/age_001"} <= drifts
    same(*map(without_drift, (two, one)))


def jointly(run):
    """Leave the norms of parts out."""
    return {name: values for name, values in run.items() if name not in APART}


def without_drift(run):
    """Leave NMSE out: its variance is that over the sequences of a micro-batch."""
    kept = {
        when: {k: v for k, v in run[when].items() if not k.startswith("drift/")}
        for when in VALIDATIONS
    }
    return run | kept


def joined(half, rest):
    """Return the figures of one training from those of its two parts."""
    steps = {name: half[name] + rest[name] for name in half.keys() & rest.keys() - VALIDATIONS}
    return steps | {"before": half["before"], "validation": rest["validation"]}


@pytest.mark.parametrize("objective", ALIKE)
def test_two_ranks_are_one_to_the_last_step(runs, objective):
    """Windows in flight too: which of them a step visits depends on no world size.

    Teachers compare sequences in groups, of which each rank has whole ones.
    """
    assert len(runs[objective]["loss/total"]) == STEPS
    same(*(without_drift(runs[name]) for name in (f"{objective}, 4", objective)))


@pytest.mark.parametrize("objective", ALIKE)
def test_three_ranks_of_uneven_shares_are_one(runs, objective):
    """Of eight sequences they have 2, 3 and 3; of the teacher's four groups 1, 1 and 2."""
    one, three = (without_drift(runs[name]) for name in (objective, f"{objective}, uneven"))
    assert len(three["loss/total"]) == STEPS
    same(three, jointly(one), norm=NORM)


@pytest.mark.parametrize("objective", ALIKE)
def test_three_ranks_go_on_as_the_two_that_saved(runs, objective):
    half, rest, whole = (runs[f"{objective}{part}"] for part in (", half", ", uneven rest", ", 4"))
    same(without_drift(joined(half, rest)), jointly(without_drift(whole)), norm=NORM)


def test_the_teachers_are_whitened_and_have_short_sequences_first(runs):
    plain, whitened, curriculum = (runs[name] for name in TEACHERS)
    assert whitened["loss/dyn"][0] != pytest.approx(plain["loss/dyn"][0], rel=0.01)
    assert min(map(abs, plain["loss/unif"])) > 0
    assert curriculum["loss/dense"][0] != plain["loss/dense"][0]


@pytest.mark.parametrize("objective", ALIKE)
def test_one_rank_goes_on_as_the_two_that_saved(runs, objective):
    half, rest, whole = (runs[f"{objective}{part}"] for part in (", half", ", rest", ", 4"))
    same(*map(without_drift, (joined(half, rest), whole)))


@pytest.mark.parametrize("objective", [*ALIKE, "bfloat16"])
def test_torch_alone_gives_the_numbers_of_deepspeed(runs, objective):
    deepspeed, plain = (runs[f"{objective}, {engine}"] for engine in ("DeepSpeed", "plain"))
    assert APART & set(plain) == APART & set(deepspeed)
    same(plain, deepspeed)


@pytest.mark.parametrize("stage", ENDS)
def test_bfloat16_goes_on_as_if_nothing_happened(runs, stage):
    half, rest, whole = (runs[f"bfloat16 {stage}{part}"] for part in (", half", ", rest", ""))
    same(joined(half, rest), whole)
    exact = runs[f"dmt, ZeRO {stage}"]["loss/total"]
    assert whole["loss/total"] != exact
    assert whole["loss/total"] == pytest.approx(exact, rel=0.02)
