"""A small run as a child process on its own storage and Ray, and what a fault has cost it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from smt_ray.data.storage import Location
from smt_ray.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SETTINGS = {
    # A report of training waits 0.25 s, not two; a silent worker is noted after seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",  # each idle worker would take seconds of a core
}
SPLITS = ("train", "validation")
WAIT_S = 900.0
BUSY = "Ray did not start in time"
"""Said by a driver on a machine that does too much else; as it says, the same command goes on."""


@dataclass(frozen=True)
class Cost:
    """What a fault has cost."""

    recovered_s: float
    """Seconds from the fault, or the next start after it, until more was done than before it."""
    steps_lost: int
    """Optimizer steps that were taken again, at most."""
    rows_lost: int
    rows_twice: int


@dataclass
class Child:
    """The driver of `tests.fault.driver`, started as often as it takes."""

    home: Path
    storage: str
    source: Path
    last: str
    environment: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; what it says goes to a file of its own."""
        self.starts += 1
        kept = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
        command = [sys.executable, "-m", "tests.fault.driver"]
        with open(self.home / f"{self.starts}.log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, self.storage, str(self.source), self.last],
                cwd=ROOT,
                env=kept | SETTINGS | {"RAY_TMPDIR": str(self.home)} | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What the last one printed."""
        return (self.home / f"{self.starts}.log").read_text()

    def wait(self) -> int:
        """Return the exit status; one whose Ray found the machine too busy is started again."""
        assert self.process
        while (status := self.process.wait(WAIT_S)) == 2 and BUSY in self.said:
            self.start()
        return status

    def send(self, number: int) -> None:
        """Send the driver alone a signal."""
        assert self.process
        self.process.send_signal(number)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """After a block that ends the driver, wait for its workers, which go on for a moment."""
        assert self.process
        started = psutil.Process(self.process.pid).children(recursive=True)
        yield
        for stopped in started:
            with suppress(psutil.NoSuchProcess):
                stopped.resume()
        # Ray's agents stay for most of a minute; they touch nothing.
        psutil.wait_procs([one for one in started if not _is_agent(one)], timeout=60)
        for left in started:
            with suppress(psutil.NoSuchProcess):
                left.kill()

    def kill(self) -> None:
        """Kill the driver."""
        with self.ending():
            self.send(signal.SIGKILL)
            self.wait()

    def signal_one(self, title: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of the driver's processes, by its title or its program's name."""
        assert self.process
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(title) or process.name() == title:
                    process.send_signal(number)
                    return
        raise AssertionError(f"no process {title}")

    def end(self) -> None:
        """End what is left of it, at once."""
        if self.process and self.process.poll() is None:
            started = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for left in started:
                with suppress(psutil.NoSuchProcess):
                    left.kill()

    # What it has made.

    def artifact(self, stage: str) -> Location | None:
        """Return where a stage's artifact lies, if it was begun."""
        places = (Location.of(self.storage) / "artifacts").directories()
        return next((place for place in places if place.name.startswith(f"{stage}-")), None)

    def files(self, stage: str) -> set[str]:
        """Return the files of a stage's artifact that are whole."""
        place = self.artifact(stage)
        found = place.files(recursive=True) if place else []
        return {file.path for file in found if not file.name.endswith((".part", ".lock"))}

    def step(self, stage: str) -> int:
        """Return the last step of a training's latest checkpoint."""
        names = re.findall(r"/step-0*(\d+)/state\.json", " ".join(self.files(stage)))
        return max(map(int, names), default=0)

    def progress(self, stage: str) -> int:
        """Return a number that grows while a stage is made."""
        files = self.files(stage)
        finished = 1_000_000 * any(re.search(rf"/{stage}-\w+/manifest\.json$", f) for f in files)
        if stage in {"teacher", "transition", "dmt"}:
            return finished + self.step(stage)
        kinds = "/units/" if stage == "tokens" else ".parquet" if stage == "labels" else ""
        return finished + sum(kinds in file and "try.json" not in file for file in files)

    def midway(self, stage: str, least: int = 1) -> int:
        """Wait until something of a stage is made, and not all; return how much."""
        until(lambda: self.progress(stage) >= least, self)
        made = self.progress(stage)
        assert made < 1_000_000, f"{stage} was over before the fault"
        return made

    def recovered(self, stage: str, before: int) -> float:
        """Wait until more is made than before; return for how many seconds."""
        began = time.monotonic()
        until(lambda: self.progress(stage) > before, self)
        return time.monotonic() - began

    def ids(self, stage: str) -> list[int]:
        """Return the identities of all rows of a stage's shards, train first."""
        place = self.artifact(stage)
        assert place
        found: list[int] = []
        for split in SPLITS:
            for file in (place / split).files(".parquet"):
                with file.open() as handle:
                    found += pq.read_table(handle, columns=["sequence_id"])[
                        "sequence_id"
                    ].to_pylist()
        return found

    def losses(self, stage: str) -> dict[int, float]:
        """Return the training loss of each step, of which each was logged once."""
        place = self.artifact(stage)
        assert place
        found = [row for row in read_metrics(place) if "loss/total" in row]
        steps = [row["step"] for row in found]
        assert steps == sorted(set(steps))
        return {row["step"]: row["loss/total"] for row in found}

    def rows(self, stage: str) -> pa.Table:
        """Return the training rows of a stage, by identity."""
        place = self.artifact(stage)
        assert place
        tables = []
        for file in (place / "train").files(".parquet"):
            with file.open() as handle:
                tables.append(pq.read_table(handle))
        return pa.concat_tables(tables).sort_by("sequence_id")

    def cost(self, expected: "Child", seconds: float, steps: int = 0) -> Cost:
        """Return what a fault has cost this one, given an undisturbed one."""
        lost = twice = 0
        for stage in ("tokens", "labels"):
            if self.artifact(stage) and expected.artifact(stage):
                mine, whole = self.ids(stage), expected.ids(stage)
                lost += len(set(whole) - set(mine))
                twice += len(mine) - len(set(mine))
        return Cost(round(seconds, 1), steps, lost, twice)


def _is_agent(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).endswith("Agent")
    return False


def until(condition: Callable[[], bool], child: Child, seconds: float = WAIT_S) -> None:
    """Wait until a condition holds while a child runs.

    A child whose Ray found the machine too busy is started again.

    Raises:
        AssertionError: with what the child said, if it ends before or takes too long.
    """
    end = time.monotonic() + seconds
    while not condition():
        over = child.process is None or child.process.poll() is not None
        if over and BUSY in child.said:
            child.start()
            continue
        assert not over or condition(), child.said
        assert time.monotonic() < end, child.said
        time.sleep(0.1)


@contextmanager
def away(place: Path, seconds: float) -> Iterator[None]:
    """Move a directory away, and back after the block and so many seconds."""
    elsewhere = place.with_name(f"{place.name}-away")
    place.rename(elsewhere)
    try:
        yield
        time.sleep(seconds)
    finally:
        elsewhere.rename(place)
