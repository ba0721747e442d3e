"""What the terminal shows of a long stage: where it is, how fast, and whether it stands still."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from tqdm import tqdm

from smt_ray.cluster import interruption
from smt_ray.terminal import duration

logger = logging.getLogger(__name__)
EVERY_S = 1.0
"""Seconds between two looks."""
PLAIN_EVERY_S = 10.0
"""Seconds between two lines, where there is no terminal for a bar."""
STALL_S = 30.0
"""Seconds without progress after which that is said, and after which it is said again."""
STALL_STEPS = 10
"""Mean times of a step within which one is expected, where these are longer."""
JOIN_S = 5.0
"""Longest wait for a look that hangs."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a stage is: `step` of `steps`, and `rate` in units per second."""

    stage: str
    step: int
    steps: int
    rate: float
    unit: str = "tokens"
    loss: float | None = None
    """In the objective's unit."""


class View:
    """Shows a bar on a terminal, and plain lines elsewhere."""

    def __init__(self, now: float, *, terminal: bool) -> None:
        """Begin at the time `now`, in seconds."""
        self.terminal = terminal
        self._bar: Any = None
        self._first: tuple[int, float] | None = None  # a step and when it was seen
        self._last = (-1, 0.0)
        self._said = self._warned = now

    @property
    def begun(self) -> bool:
        """Whether there was any progress to show."""
        return self._first is not None

    def show(self, latest: Progress, now: float) -> None:
        """Show progress as it is at the time `now`, in seconds."""
        if self._first is None:
            self._first = (latest.step, now)
        if latest.step != self._last[0]:
            self._last = (latest.step, now)
            self._advance(latest, now)
        elif now - max(self._last[1], self._warned) > self._patience():
            self._warned = now
            self._stall(latest, duration(now - self._last[1]))

    def restart(self) -> None:
        """Take the speed anew: the stage went on from an earlier step."""
        self._first = None

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _advance(self, latest: Progress, now: float) -> None:
        loss = "" if latest.loss is None else f"loss {latest.loss:.4f}  "
        figures = f"{loss}{latest.rate:,.0f} {latest.unit}/s"
        if self.terminal:
            if self._bar is None:
                self._bar = tqdm(total=latest.steps, initial=latest.step, desc=latest.stage)
            self._bar.set_postfix_str(figures)
            self._bar.update(latest.step - self._bar.n)
        elif now - self._said > PLAIN_EVERY_S and latest.rate > 0 and not interruption.asked():
            self._said = now
            place = f"{latest.stage:<10} {latest.step:,} of {latest.steps:,}"
            logger.info("%s  %s  %s left", place, figures, duration(self._left(latest, now)))

    def _left(self, latest: Progress, now: float) -> float:
        """Return the seconds that are left at the mean speed so far."""
        assert self._first
        step, since = self._first
        return (latest.steps - latest.step) * (now - since) / max(1, latest.step - step)

    def _patience(self) -> float:
        """Return after how many seconds progress is overdue."""
        assert self._first
        steps, seconds = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return max(STALL_S, STALL_STEPS * seconds / max(1, steps))

    def _stall(self, latest: Progress, quiet: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"no step for {quiet}")
        else:
            logger.warning(
                "%s: no step for %s, at %s of %s; a worker is stopped, slow, or validating",
                *(latest.stage, quiet, f"{latest.step:,}", f"{latest.steps:,}"),
            )


@contextmanager
def watched(look: Callable[[View, float], None]) -> Iterator[View]:
    """Let a thread look every second, until the context or Ray ends.

    Args:
        look: shows the latest progress in the view, at a time in seconds.
    """
    view = View(time.monotonic(), terminal=sys.stderr.isatty())
    done = threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_S):
            try:
                look(view, time.monotonic())
            except RayError:
                break
        view.close()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield view
    finally:
        done.set()
        thread.join(JOIN_S)
