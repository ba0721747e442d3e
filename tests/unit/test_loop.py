"""The training loop in one process: steps that are not finite are named, or left out."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from safetensors.torch import save_file

from smt_ray.config import DataConfig, DmtConfig, OptimizerConfig, RunConfig, RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.train.host import InProcess
from smt_ray.train.loop import StepSkipped, train
from smt_ray.train.programs import DmtProgram, StoredLabels
from tests.samples import MODEL, VOCABULARY, Around, random_weights, rows, write

L, STEPS, BAD = 16, 12, 7
RUNTIME = RuntimeConfig(log_every=4, checkpoint_every=4)


class Poisoned(Around):
    """A stream whose labels are no numbers at step BAD; it keeps which sequences these are."""

    sequences: ClassVar[list[int]] = []

    def batch(self, step):
        batch = self.stream.batch(step)
        if step + 1 == BAD:
            Poisoned.sequences = batch["sequence_id"].tolist()
            batch = {**batch, "memory": batch["memory"] * float("nan")}
        return batch


@dataclass(frozen=True)
class Program(DmtProgram):
    poisoned: bool = True

    def stream(self, rank, world, saved, step):
        stream = super().stream(rank, world, saved, step)
        return Poisoned(stream) if self.poisoned else stream


class Noting(InProcess):
    """This process, which notes the steps that are left out."""

    def __init__(self, directory=None, left_out=()):
        super().__init__(directory)
        self.left_out = [*left_out]

    def skipped(self):
        return self.left_out

    def skip(self, step, why):
        self.left_out = [*self.left_out, step]


@pytest.fixture
def program(tmp_path):
    place = Location.of(tmp_path)
    for split in ("train", "validation"):
        write(place / "labels" / split, rows(40, L, MODEL), MODEL)
    config = RunConfig(
        data=DataConfig(sequence_length=L),
        model=MODEL,
        optimizer=OptimizerConfig(validate_every=100, validation_sequences=8),
        dmt=DmtConfig(steps=STEPS, global_batch=8, learning_rate=3e-3, visits=2.0),
    )
    teacher = random_weights(Teacher(MODEL, config.loss, VOCABULARY, 0))
    transition = random_weights(Transition(MODEL, VOCABULARY))
    for name, module in (("teacher", teacher), ("transition", transition)):
        (tmp_path / name).mkdir()
        save_file(module.state_dict(), tmp_path / name / "model.safetensors")
    labels = StoredLabels(place / "labels", {})

    def made(poisoned=True, allowed=0):
        own = config.override("optimizer.skip-nonfinite", allowed)
        where = place / "teacher", place / "transition"
        return Program(own, labels, *where, VOCABULARY, poisoned=poisoned)

    return made


def losses(host):
    return [(row["step"], row["loss/total"]) for row in host.rows_of_metrics if "loss/total" in row]


def test_a_bad_step_inside_an_interval_is_named_with_its_sequences(program):
    with pytest.raises(FloatingPointError) as raised:
        train(program(), InProcess(), RUNTIME)
    named = ", ".join(map(str, Poisoned.sequences))
    said = str(raised.value)
    assert f"not finite at step {BAD}; lower its learning-rate=0.003, or raise " in said
    assert f"(rank 0 had the sequences {named}; the last checkpoint is of step 4)" in said


def test_a_bad_step_is_left_out_from_the_last_checkpoint_on(program, tmp_path):
    host = Noting(tmp_path / "kept")
    with pytest.raises(StepSkipped, match=f"not finite at step {BAD}; going on without it from st"):
        train(program(allowed=1), host, RUNTIME)
    again = Noting(tmp_path / "kept", host.left_out)
    train(program(allowed=1), again, RUNTIME)
    whole = Noting(left_out=[BAD])
    train(program(poisoned=False), whole, RUNTIME)
    assert losses(host) == losses(whole)[:1]
    assert losses(again) == [(step, pytest.approx(loss)) for step, loss in losses(whole)[1:]]
    with pytest.raises(FloatingPointError, match=r"raise optimizer.skip-nonfinite=0 to leave "):
        train(program(allowed=0), Noting(), RUNTIME)


@pytest.mark.parametrize(
    ("left_out", "logged"), [([5], [4, 8, 12]), ([5, 6, 7, 8], [4, 12]), ([STEPS], [4, 8, 12])]
)
def test_windows_keep_their_schedule_over_left_out_steps(program, tmp_path, left_out, logged):
    """As does a training that goes on right before that step."""
    whole = Noting(left_out=left_out)
    train(program(poisoned=False), whole, RUNTIME)
    done = train(program(poisoned=False), Stopping(tmp_path / "kept", left_out), RUNTIME)
    rest = Noting(tmp_path / "kept", left_out)
    train(program(poisoned=False), rest, RUNTIME)
    assert done == 4
    assert losses(rest) == [(s, pytest.approx(loss)) for s, loss in losses(whole) if s > 4]
    assert [step for step, _ in losses(whole)] == logged


class Stopping(Noting):
    """This process until step 4."""

    def stop_requested(self, done, loss, rate):
        return done == 3
