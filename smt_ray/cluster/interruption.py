"""SIGTERM and Ctrl-C: the first one saves what can be saved and stops, the second ends at once.

Signals arrive in the main thread of a job's process. Ray takes both over at `ray.init`, Ray Train
takes SIGINT at every `fit`: `shielded` and `trainer.py` keep them here.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0
"""Seconds in which a signal counts once: `timeout` and SLURM send it to a process and its group."""


class Stopped(SystemExit):
    """A job was asked to stop, and has; what is finished stays. Exits as shells expect: 128 + N."""

    def __init__(self, number: int) -> None:
        """Stop by signal `number`."""
        super().__init__(128 + number)


class _Interruption:
    """The signals of this process."""

    def __init__(self) -> None:
        self.number = 0
        self.since = 0.0
        self.save: Callable[[], bool] = bool
        self.advice = ""

    def handle(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.number:
            if now - self.since > ECHO_S:
                logger.info("%s again: ending at once", name)
                os._exit(128 + number)
            return
        self.number, self.since = number, now
        if not self.save():
            logger.info("stopped by %s%s", name, self.advice)
            raise Stopped(number)
        logger.info("%s: saving a checkpoint, then stopping; once more ends at once", name)


_state = _Interruption()


@contextlib.contextmanager
def handled(advice: str = "") -> Iterator[None]:
    """Take SIGTERM and SIGINT over for a while, where this is the main thread.

    After a signal they stay taken, while the process ends.

    Args:
        advice: ends the line that says what stopped the job.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, outer = {number: signal.getsignal(number) for number in SIGNALS}, _state
    _state = _Interruption()
    _state.advice = advice
    _take()
    try:
        yield
    finally:
        if not _state.number:
            _state = outer
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def saving(save: Callable[[], bool]) -> Iterator[None]:
    """Let the first signal call `save`; where that returns True, what it began is to end this."""
    with contextlib.nullcontext() if _ours() else handled():
        state, before = _state, _state.save
        state.save = save
        try:
            yield
        finally:
            state.save = before


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Start Ray: its processes ignore both signals, which still reach this one.

    What is sent to the whole process group (by a terminal, `timeout`, SLURM) would end Ray before a
    checkpoint is saved. Its processes inherit the mask of blocked signals.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ours = _ours()
    try:
        yield
    finally:
        if ours:
            _take()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def asked() -> int:
    """Return the signal that asked this job to stop; 0 if there was none."""
    return _state.number


def _ours() -> bool:
    return signal.getsignal(signal.SIGTERM) == _state.handle


def _take() -> None:
    for number in SIGNALS:
        signal.signal(number, _state.handle)
