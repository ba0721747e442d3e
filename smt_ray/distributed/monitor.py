"""The line between the driver and rank 0: progress comes up, a request to stop goes down."""

import logging
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from tqdm import tqdm

from smt_ray.distributed.session import beside_driver, stop
from smt_ray.evaluation.table import duration

logger = logging.getLogger(__name__)
EVERY_S = 1.0
PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class Progress:
    """Where a stage is; `loss` in the objective's unit, `rate` in tokens/s."""

    stage: str
    step: int
    steps: int
    loss: float
    rate: float


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest progress and the request to stop."""

    def __init__(self) -> None:
        """Start with nothing known and nothing asked."""
        self._latest: Progress | None = None
        self._stop = False

    def report(self, progress: Progress) -> bool:
        """Take rank 0's progress; return whether to stop."""
        self._latest = progress
        return self._stop

    def latest(self) -> Progress | None:
        """Return the latest progress."""
        return self._latest

    def request_stop(self) -> None:
        """Ask the training to save a checkpoint and stop."""
        self._stop = True


class Reporter:
    """Rank 0's end: reports about once a second, without waiting for the answer."""

    def __init__(self, board: Any) -> None:
        """Report to `board`."""
        self._board, self._sent, self._asked, self._stop = board, 0.0, None, False

    def stop_requested(self, progress: Progress) -> bool:
        """Report progress if it is time; return whether a stop was asked for."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            self._stop, self._asked = ray.get(self._asked), None
        now = time.monotonic()
        if self._asked is None and now - self._sent > EVERY_S:
            self._asked, self._sent = self._board.report.remote(progress), now
        return self._stop


class Monitor:
    """The driver's end, a context: shows progress, and turns SIGTERM into a request to stop.

    Where there is nothing to save yet, and at the second SIGTERM, it stops at once.
    """

    def __enter__(self) -> "Monitor":
        """Begin to show and to listen."""
        beside = Board.options(scheduling_strategy=beside_driver())  # type: ignore[attr-defined]
        self.board: Any = beside.remote()
        self._training = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing and give SIGTERM back."""
        self._done.set()
        self._thread.join()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        ray.kill(self.board)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            stop(number, frame)
        self._training = False
        logger.info("SIGTERM: saving a checkpoint, then stopping")
        self.board.request_stop.remote()

    def _show(self) -> None:
        """Show a bar on a terminal, and plain lines elsewhere."""
        bar, first, said, reached = None, None, time.monotonic(), 0
        while not self._done.wait(EVERY_S):
            latest: Progress | None = ray.get(self.board.latest.remote())
            if latest is None:
                continue
            now = time.monotonic()
            if latest.step < reached:
                logger.warning(
                    "%s: lost a worker after step %d; going on from step %d",
                    *(latest.stage, reached, latest.step),
                )
                first = None
            reached = latest.step
            if first is None:
                first, self._training = (latest.step, now), True
            if sys.stderr.isatty():
                if bar is None:
                    bar = tqdm(total=latest.steps, initial=latest.step, desc=latest.stage)
                bar.set_postfix_str(f"loss {latest.loss:.4f}, {latest.rate:,.0f} tokens/s")
                bar.update(latest.step - bar.n)
            elif now - said > PLAIN_EVERY_S and latest.rate > 0:
                said = now
                logger.info("%s", _line(latest, *first, now))
        if bar is not None:
            bar.close()


def _line(latest: Progress, step: int, since: float, now: float) -> str:
    """Return one plain line; the time left takes the mean speed `since` it was at `step`."""
    left = (latest.steps - latest.step) * (now - since) / max(1, latest.step - step)
    return (
        f"{latest.stage:<10} {latest.step:,} of {latest.steps:,}  loss {latest.loss:.4f}  "
        f"{latest.rate:,.0f} tokens/s  {duration(left)} left"
    )
