"""Programs that are timed in turns: each is a process of its own that waits while another works.

A program passes a `Gate` at every step, which notes when. The benchmark opens the gate of one
`Side` for some steps, then that of another: both meet the same machine.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import psutil

POLL_S = 0.05
FOREVER = 1 << 40
"""Steps of a gate that stays open."""


class Note(NamedTuple):
    """When a program came to a step, or found its gate open."""

    what: str
    step: int
    at: float
    process: int
    rows: int


class Gate:
    """Where a program waits until it may take a step."""

    def __init__(self, place: Path) -> None:
        """Look in `place`/open how many steps may be taken; note times in `place`/notes."""
        self.place = place

    def wait(self, step: int, rows: int = 1) -> None:
        """Wait until the step may be taken, which is about so many rows."""
        self._note("asked", step, rows)
        while step >= int((self.place / "open").read_text()):
            time.sleep(POLL_S)
        self._note("open", step, rows)

    def _note(self, what: str, step: int, rows: int) -> None:
        note = Note(what, step, time.monotonic(), os.getpid(), rows)
        with (self.place / "notes").open("a") as file:
            file.write(json.dumps(note) + "\n")


class Taken(NamedTuple):
    """Steps that a program took: the seconds of each, and the rows of all."""

    seconds: list[float]
    rows: int

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / sum(self.seconds)


class Side:
    """A part of a benchmark, as a process that takes steps when it is its turn."""

    def __init__(self, module: str, part: str, place: Path) -> None:
        """Prepare the part of that name; its gate is in a directory in `place`."""
        self.place, self.done = Path(mkdtemp(prefix=f"{part}-", dir=place)), 0
        self.command = command(module, part, self.place)
        self.process: subprocess.Popen[str] | None = None
        (self.place / "notes").touch()
        self._file, self._notes = (self.place / "notes").open(), list[Note]()
        self.open(0)

    def __enter__(self) -> "Side":
        """Return this; its first steps start it."""
        return self

    def __exit__(self, *failure: object) -> None:
        """End it."""
        self.end()
        self._file.close()

    def open(self, steps: int) -> None:
        """Let it take so many steps in all."""
        part = self.place / "open.part"
        part.write_text(str(steps))
        part.replace(self.place / "open")

    def start(self) -> None:
        """Start it before its first steps, as far as it comes."""
        self.process = subprocess.Popen(
            self.command, env=environment(), stdout=subprocess.PIPE, text=True
        )

    def take(self, steps: int) -> Taken:
        """Let it take some more steps; one ends when it asks for the next."""
        if not self.process:
            self.start()
        first, self.done = self.done, self.done + steps
        self.open(self.done)
        self.wait("asked", self.done)
        notes = self.notes()
        at = {(note.what, note.step): note.at for note in notes}
        taken = range(first, self.done)
        rows = sum(n.rows for n in notes if n.what == "open" and n.step in taken)
        return Taken([at["asked", n + 1] - at["open", n] for n in taken], rows)

    def wait(self, what: str, step: int, besides: int = 0) -> Note:
        """Wait until it notes so; return the first such note of a process other than `besides`."""
        while True:
            for note in self.notes():
                if (note.what, note.step) == (what, step) and note.process != besides:
                    return note
            assert self.process
            assert self.process.poll() is None, f"{self.command} has ended"
            time.sleep(POLL_S)

    def notes(self) -> list[Note]:
        """Return all that was noted yet."""
        while (line := self._file.readline()).endswith("\n"):
            self._notes.append(Note(*json.loads(line)))
        self._file.seek(self._file.tell() - len(line))  # half a line
        return self._notes

    def result(self) -> dict[str, Any]:
        """Let it end; return the figures that it prints last."""
        assert self.process
        self.open(FOREVER)
        said, _ = self.process.communicate()
        status, self.process = self.process.returncode, None
        if status:
            raise subprocess.CalledProcessError(status, self.command)
        return json.loads(said.splitlines()[-1])

    def end(self) -> None:
        """Kill it with all that it has started, if it is still there."""
        if self.process:
            kill(self.process.pid)
            self.process.communicate()
            self.process = None


def environment() -> dict[str, str]:
    """Return what all programs have in common: that of Ray's workers, and one thread."""
    from smt_ray.cluster.session import WORKER_ENVIRONMENT  # it needs ray, which a gate does not

    # A worker that is nice would give way to what it is compared with.
    own = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return os.environ | WORKER_ENVIRONMENT | own


def add_part(parser: argparse.ArgumentParser, parts: Iterable[str]) -> None:
    """Let a benchmark run one of its parts, as `command` asks it to."""
    parser.add_argument("--part", choices=parts, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)


def command(module: str, part: str, place: Path) -> list[str]:
    """Return the command of a benchmark's part in a process of its own."""
    own = ["--part", part, "--place", str(place)]
    return [sys.executable, "-m", module, *own]


def alone(module: str, part: str, place: Path) -> dict[str, Any]:
    """Return the figures of a part that runs in a process of its own."""
    made, own = command(module, part, place), environment()
    result = subprocess.run(made, env=own, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def kill(process: int) -> None:
    """Kill a process and all below it at once."""
    with suppress(psutil.NoSuchProcess):  # it has ended
        top = psutil.Process(process)
        below = top.children(recursive=True)
        for one in (top, *below):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        psutil.wait_procs(below, timeout=60)
