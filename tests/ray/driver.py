"""A training that harms itself at known steps; run as a program, it is a driver to be stopped.

python -m tests.ray.driver PLACE ADDRESS
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import ray
from safetensors.torch import save_file

from smt_ray.config import (
    DataConfig,
    DmtConfig,
    OptimizerConfig,
    RunConfig,
    RuntimeConfig,
)
from smt_ray.data.reader import Stream
from smt_ray.data.storage import Location
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.terminal import configure_logging
from smt_ray.train.programs import DmtProgram, StoredLabels
from smt_ray.train.trainer import fit
from tests.samples import MODEL, VOCABULARY, Around, random_weights, rows, write

L, STEPS, KILLED, SLOW = 16, 70, 23, 30
RUNTIME = RuntimeConfig(
    device="cpu", workers=2, micro_batch=2, checkpoint_every=20, log_every=1, max_failures=1
)
CONFIG = RunConfig(
    data=DataConfig(sequence_length=L),
    model=MODEL,
    optimizer=OptimizerConfig(validate_every=25, validation_sequences=16),
    dmt=DmtConfig(steps=STEPS, global_batch=8, learning_rate=3e-3, visits=4.0),
    runtime=RUNTIME,
)


@dataclass(frozen=True)
class Program(DmtProgram):
    """DMT; with `harm`, it kills a rank at step KILLED once, and crawls from step SLOW once."""

    harm: str = ""
    bad: tuple[int, ...] = ()
    """Steps whose labels are no numbers, from 1 on."""

    def stream(self, rank, world, saved, step):
        stream = super().stream(rank, world, saved, step)
        if self.bad:
            return Poisoned(stream, self.bad)
        return Harmed(stream, Path(self.harm), rank) if self.harm else stream


class Poisoned(Around):
    """A stream whose labels are no numbers at some steps."""

    def __init__(self, stream: Stream, bad: tuple[int, ...]) -> None:
        super().__init__(stream)
        self.bad = bad

    def batch(self, step):
        batch = self.stream.batch(step)
        if step + 1 in self.bad:
            batch = {**batch, "memory": batch["memory"] * float("nan")}
        return batch


class Harmed(Around):
    """A stream that does what the files in `place` say was not yet done."""

    def __init__(self, stream: Stream, place: Path, rank: int) -> None:
        super().__init__(stream)
        self.place, self.rank = place, rank

    def batch(self, step):
        if step == KILLED and self.rank == 1 and not (self.place / "killed").exists():
            (self.place / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step >= SLOW and not (self.place / "stopped").exists():
            (self.place / "slow").touch()
            time.sleep(0.2)
        return self.stream.batch(step)


def prepare(place: Path) -> Program:
    """Write labels and weights to `place`; return the program, without harm."""
    for split in ("train", "validation"):
        write(Location.of(place / "labels" / split), rows(60, L, MODEL), MODEL, files=2)
    teacher = random_weights(Teacher(MODEL, CONFIG.loss, VOCABULARY, 0))
    transition = random_weights(Transition(MODEL, VOCABULARY))
    for name, module in (("teacher", teacher), ("transition", transition)):
        (place / name).mkdir()
        save_file(module.state_dict(), place / name / "model.safetensors")
    return program(place)


def program(place: Path, harm: str = "") -> Program:
    """Return the program on what `prepare` wrote to `place`."""
    names = ("labels", "teacher", "transition")
    labels, teacher, transition = (Location.of(place / name) for name in names)
    return Program(CONFIG, StoredLabels(labels, {}), teacher, transition, VOCABULARY, harm=harm)


def main(place: Path, address: str) -> int:
    """Train with harm into `place`/harmed until asked to stop."""
    configure_logging()
    ray.init(address, log_to_driver=False)
    fit(program(place, str(place)), RUNTIME, Location.of(place / "harmed"))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
