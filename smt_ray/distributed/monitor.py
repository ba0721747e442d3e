"""The line between the driver and rank 0: progress comes up, a request to stop goes down."""

import logging
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from smt_ray.distributed import interruption
from smt_ray.distributed.session import beside_driver
from smt_ray.evaluation.table import duration

logger = logging.getLogger(__name__)
NAMESPACE = "smt_ray"
"""Ray's namespace of the boards of all runs on a cluster."""
EVERY_S = 1.0
JOIN_S = 5.0
PLAIN_EVERY_S = 10.0
STALL_S = 30.0
"""Seconds without a step after which that is said, and after which it is said again."""
STALL_STEPS = 10
"""Mean times of a step for which none is expected, where these are longer."""


@dataclass(frozen=True)
class Progress:
    """Where a stage is; `loss` in the objective's unit, `rate` in tokens/s."""

    stage: str
    step: int
    steps: int
    loss: float
    rate: float
    start: int
    """Step from which the workers went on when they were started."""
    attempt: str
    """Tells the workers from those that were started before or after them."""


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest progress, where workers were lost, and the request to stop."""

    def __init__(self) -> None:
        """Start with nothing known and nothing asked."""
        self._latest: Progress | None = None
        self._lost: list[int] = []
        self._stop = False

    def report(self, progress: Progress) -> bool:
        """Take rank 0's progress; return whether to stop."""
        if self._latest and self._latest.attempt != progress.attempt:
            self._lost.append(self._latest.step)
        self._latest = progress
        return self._stop

    def latest(self) -> tuple[Progress | None, list[int]]:
        """Return the latest progress, and after which steps workers were lost."""
        return self._latest, self._lost

    def request_stop(self) -> None:
        """Ask the training to save a checkpoint and stop."""
        self._stop = True


class Reporter:
    """Rank 0's end: reports about once a second, without waiting for the answer."""

    def __init__(self, board: Any, stage: str, start: int, steps: int) -> None:
        """Report to `board` on a stage that goes on from step `start`."""
        self._board, self._stage, self._start, self._steps = board, stage, start, steps
        self._attempt = uuid.uuid4().hex
        self._sent, self._asked, self._stop = 0.0, None, False

    def stop_requested(self, step: int, loss: float, rate: float) -> bool:
        """Report progress if it is time; return whether a stop was asked for."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            self._stop, self._asked = ray.get(self._asked), None
        now = time.monotonic()
        if self._asked is None and now - self._sent > EVERY_S:
            place = (self._stage, step, self._steps, loss, rate, self._start, self._attempt)
            self._asked, self._sent = self._board.report.remote(Progress(*place)), now
        return self._stop


@contextmanager
def monitored(run: str) -> Iterator[Any]:
    """Show the progress of a training of `run`, and turn a signal into a request to stop.

    Where there is nothing to save yet, the signal stops at once.

    Yields:
        The board, for rank 0's `Reporter`.
    """
    board: Any = Board.options(  # type: ignore[attr-defined]
        name=f"{_prefix(run)}/{uuid.uuid4().hex}",
        namespace=NAMESPACE,
        scheduling_strategy=beside_driver(),
    ).remote()
    view = _View(time.monotonic(), terminal=sys.stderr.isatty())
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(board, view, done), daemon=True)
    thread.start()

    def save() -> bool:
        if view.training:
            board.request_stop.remote()
        return view.training

    try:
        with interruption.saving(save):
            yield board
    finally:
        done.set()
        thread.join(JOIN_S)
        with suppress(RayError):
            ray.kill(board)


def _watch(board: Any, view: "_View", done: threading.Event) -> None:
    """Show what the board holds until the training, or Ray, ends."""
    while not done.wait(EVERY_S):
        try:
            latest, lost = ray.get(board.latest.remote())
        except RayError:
            break
        if latest is not None:
            view.show(latest, lost, time.monotonic())
    view.close()


class _View:
    """What the terminal shows of a stage."""

    def __init__(self, now: float, *, terminal: bool) -> None:
        self.terminal, self.bar = terminal, None
        self.first: tuple[int, float] | None = None  # a step and when it was seen
        self.last = (-1, 0.0)
        self.lost = 0
        self.said = self.warned = now

    @property
    def training(self) -> bool:
        """Whether a step was seen."""
        return self.first is not None

    def show(self, latest: Progress, lost: Sequence[int], now: float) -> None:
        """Show progress, and where workers were lost, as it is `now`, in seconds."""
        for step in lost[self.lost :]:
            logger.warning(
                "%s: lost a worker after step %d; going on from step %d",
                *(latest.stage, step, latest.start),
            )
            self.first = None
        self.lost = len(lost)
        if self.first is None:
            self.first = (latest.step, now)
        if latest.step != self.last[0]:
            self.last = (latest.step, now)
            self._progress(latest, now)
        elif now - max(self.last[1], self.warned) > self._patience():
            self.warned = now
            self._stalled(latest, duration(now - self.last[1]))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def _progress(self, latest: Progress, now: float) -> None:
        if self.terminal:
            if self.bar is None:
                self.bar = tqdm(total=latest.steps, initial=latest.step, desc=latest.stage)
            self.bar.set_postfix_str(f"loss {latest.loss:.4f}, {latest.rate:,.0f} tokens/s")
            self.bar.update(latest.step - self.bar.n)
        elif now - self.said > PLAIN_EVERY_S and latest.rate > 0 and not interruption.asked():
            assert self.first
            self.said = now
            logger.info("%s", _line(latest, *self.first, now))

    def _patience(self) -> float:
        """Return after how many seconds a step is overdue."""
        assert self.first
        steps, seconds = self.last[0] - self.first[0], self.last[1] - self.first[1]
        return max(STALL_S, STALL_STEPS * seconds / max(1, steps))

    def _stalled(self, latest: Progress, quiet: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"no step for {quiet}")
        else:
            logger.warning(
                "%s: no step for %s, after step %d of %d; a worker is stopped, slow, or validating",
                *(latest.stage, quiet, latest.step, latest.steps),
            )


def stop_trainings(run: str, wait_s: float) -> None:
    """Ask all trainings of runs whose names begin with `run` to save and stop; wait until they did.

    Args:
        run: beginning of the runs' names.
        wait_s: longest wait in seconds.
    """
    until = time.monotonic() + wait_s
    asked: set[str] = set()
    while boards := _boards(run):
        for name in boards - asked:
            ray.get_actor(name, namespace=NAMESPACE).request_stop.remote()
        asked |= boards
        if time.monotonic() > until:
            return
        time.sleep(EVERY_S)


def _boards(run: str) -> set[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if actor["name"].startswith(_prefix(run))}


def _prefix(run: str) -> str:
    return f"board/{run}"


def _line(latest: Progress, step: int, since: float, now: float) -> str:
    """Return one plain line; the time left takes the mean speed `since` it was at `step`."""
    left = (latest.steps - latest.step) * (now - since) / max(1, latest.step - step)
    return (
        f"{latest.stage:<10} {latest.step:,} of {latest.steps:,}  loss {latest.loss:.4f}  "
        f"{latest.rate:,.0f} tokens/s  {duration(left)} left"
    )
