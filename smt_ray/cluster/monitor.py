"""The line between the driver and rank 0: progress comes up, a request to stop goes down."""

import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from smt_ray.cluster import interruption
from smt_ray.cluster.heartbeat import Beat, Beats
from smt_ray.cluster.session import beside_driver
from smt_ray.cluster.view import EVERY_S, Progress, View, watched

logger = logging.getLogger(__name__)
NAMESPACE = "smt_ray"
"""Ray's namespace of the boards of all runs on a cluster."""
LOST, MORE = "lost a worker", "there is room for more workers"
Restart = tuple[str, int, int]
"""Why all workers were started again, after which step, and from which one they went on."""


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest progress, the ranks' beats, what happened, and the request to stop."""

    def __init__(self) -> None:
        """Start with nothing known and nothing asked."""
        self._latest: Progress | None = None
        self._attempt, self._world, self._cause = "", 0, ""
        self._restarts: list[Restart] = []
        self._beats: dict[int, tuple[Beat, float]] = {}
        self._stop = False

    def report(self, progress: Progress, attempt: str, start: int, world: int) -> bool:
        """Take rank 0's progress; return whether to stop.

        Args:
            progress: where the training is.
            attempt: tells the workers from those that were started before or after them.
            start: the step from which they went on.
            world: how many they are.
        """
        if self._latest and attempt != self._attempt:
            cause = self._cause or (MORE if world > self._world else LOST)
            self._restarts.append((cause, self._latest.step, start))
            self._cause = ""
        self._latest, self._attempt, self._world = progress, attempt, world
        return self._stop

    def latest(self) -> tuple[Progress | None, list[Restart]]:
        """Return the latest progress, and where workers were started again."""
        return self._latest, self._restarts

    def explain(self, cause: str) -> None:
        """Take the cause of the next restart."""
        self._cause = cause

    def beat(self, beat: Beat) -> None:
        """Take a rank's beat; those of an earlier start of the workers are forgotten."""
        now = time.monotonic()
        kept = {r: known for r, known in self._beats.items() if known[0].attempt == beat.attempt}
        self._beats = {**kept, beat.rank: (beat, now)}

    def beats(self) -> Beats:
        """Return the latest beat of each rank, and its age in seconds."""
        now = time.monotonic()
        return {rank: (beat, now - then) for rank, (beat, then) in self._beats.items()}

    def request_stop(self) -> None:
        """Ask the training to save a checkpoint and stop."""
        self._stop = True


class Reporter:
    """Rank 0's end: reports about once a second, without waiting for the answer."""

    def __init__(self, board: Any, stage: str, start: int, steps: int, world: int) -> None:
        """Report to `board` on a stage that `world` workers go on with from step `start`."""
        self._board, self._stage, self._start, self._steps = board, stage, start, steps
        self._world = world
        self._attempt = uuid.uuid4().hex
        self._sent, self._asked, self._stop = 0.0, None, False

    def stop_requested(self, step: int, loss: float, rate: float) -> bool:
        """Report progress if it is time; return whether a stop was asked for.

        Args:
            step: optimizer steps done.
            loss: in the objective's unit.
            rate: tokens per second.
        """
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            self._stop, self._asked = ray.get(self._asked), None
        now = time.monotonic()
        if self._asked is None and now - self._sent > EVERY_S:
            at = Progress(stage=self._stage, step=step, steps=self._steps, rate=rate, loss=loss)
            self._asked = self._board.report.remote(at, self._attempt, self._start, self._world)
            self._sent = now
        return self._stop


@contextmanager
def monitored(run: str) -> Iterator[Any]:
    """Show the progress of a training of `run`, and turn a signal into a request to stop.

    Where there is nothing to save yet, the signal stops at once.

    Yields:
        The board, for rank 0's `Reporter`.
    """
    board: Any = Board.options(  # type: ignore[attr-defined]
        name=f"{_prefix(run)}{uuid.uuid4().hex}",
        namespace=NAMESPACE,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=beside_driver(),
    ).remote()
    known: list[Restart] = []

    def look(view: View, now: float) -> None:
        latest, restarts = ray.get(board.latest.remote())
        for restart in restarts[len(known) :]:
            known.append(restart)
            logger.warning("%s: %s after step %d; going on from step %d", latest.stage, *restart)
            view.restart()
        if latest is not None:
            view.show(latest, now)

    try:
        with watched(look) as view:

            def save() -> bool:
                if view.begun:
                    board.request_stop.remote()
                return view.begun

            with interruption.saving(save):
                yield board
    finally:
        with suppress(RayError):
            ray.kill(board)


def stop_trainings(runs: Iterable[str], wait_s: float) -> None:
    """Ask all trainings of these runs to save and stop; wait until they did.

    Args:
        runs: the runs' names.
        wait_s: longest wait in seconds.
    """
    until, prefixes = time.monotonic() + wait_s, tuple(map(_prefix, runs))
    asked: set[str] = set()
    while (boards := _boards(prefixes)) and time.monotonic() < until:
        for name in boards - asked:
            with suppress(ValueError):  # it has ended meanwhile
                ray.get_actor(name, namespace=NAMESPACE).request_stop.remote()
        asked |= boards
        time.sleep(EVERY_S)


def _boards(prefixes: tuple[str, ...]) -> set[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if actor["name"].startswith(prefixes)}


def _prefix(run: str) -> str:
    return f"board/{run}/"
