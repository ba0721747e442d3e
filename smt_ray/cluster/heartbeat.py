"""Heartbeats of a training's ranks: which one does not answer, on which node, and how it is ended.

A thread of each rank tells the driver's board where the rank is. A process that is stopped, or on a
node that hangs, has no heartbeat; one that waits for its data does not get to the step that the
others are in.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SLOWEST_S = 10.0
PATIENCE_S = 30.0
"""Longest wait for the board, and for a node on which a process is ended."""


class Unanswered(RuntimeError):
    """Other ranks waited in vain for one; the text names it and its node."""


@dataclass(frozen=True)
class Beat:
    """Where a rank is."""

    rank: int
    attempt: str
    """Tells this start of all ranks from others."""
    node: str
    """Ray's id of the node."""
    address: str
    """The node's address."""
    pid: int
    """Of the rank's process."""
    arrived: int = 0
    """The optimizer step that it is ready for: its next collectives are this step's."""


Beats = Mapping[int, tuple[Beat, float]]
"""The latest beat of each rank, and its age in seconds."""


class Heart:
    """One rank's end: beats until it is stopped, as often as `timeout_s` needs it."""

    def __init__(self, board: Any, rank: int, timeout_s: float) -> None:
        """Begin to beat.

        Args:
            board: the driver's board, a `monitor.Board`.
            rank: this rank.
            timeout_s: seconds after which a collective is given up.
        """
        self._board, self._timeout_s = board, timeout_s
        where = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        attempt = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        self._beat = Beat(rank, attempt, *where, os.getpid())
        self._since = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="heart", daemon=True).start()

    def arrive(self, step: int) -> None:
        """Note that this rank is ready for the collectives of `step`."""
        self._beat, self._since = replace(self._beat, arrived=step), time.monotonic()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()

    def missed(self) -> str:
        """Return who did not answer, where this rank has waited long enough; "" if all did."""
        waited = time.monotonic() - self._since
        try:
            beats: Beats = ray.get(self._board.beats.remote(), timeout=PATIENCE_S)
        except RayError:
            return ""
        beats = {rank: beat for rank, beat in beats.items() if rank != self._beat.rank}
        if silent := unanswered(beats, self._timeout_s):
            return "; ".join(map(described, silent.values()))
        behind = [beat for beat, _ in beats.values() if beat.arrived < self._beat.arrived]
        if waited < self._timeout_s / 2 or not behind:
            return ""
        late = "; ".join(
            f"{_named(beat)} did not get to step {self._beat.arrived}" for beat in behind
        )
        return f"{late} in {waited:.0f} s"

    def _run(self) -> None:
        every = min(SLOWEST_S, self._timeout_s / 10)
        while True:
            self._board.beat.remote(self._beat)
            if self._stopped.wait(every):
                return


def unanswered(beats: Beats, timeout_s: float) -> Beats:
    """Return the beats of the ranks that have none since half of `timeout_s`."""
    return {rank: (beat, age) for rank, (beat, age) in beats.items() if age > timeout_s / 2}


def described(beat: tuple[Beat, float]) -> str:
    """Return which rank did not answer, on which node, for how long."""
    return f"{_named(beat[0])} did not answer for {beat[1]:.0f} s"


def end(beat: Beat) -> None:
    """Kill a rank's process, stopped or not; a node that does not answer either is left alone."""
    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    killed = _kill.options(scheduling_strategy=there).remote(beat.pid)
    try:
        ray.get(killed, timeout=PATIENCE_S)
    except RayError:
        ray.cancel(killed)


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int) -> None:
    """Kill a process of Ray, if it is still there."""
    if psutil.pid_exists(pid) and "ray::" in " ".join(psutil.Process(pid).cmdline()):
        os.kill(pid, signal.SIGKILL)


def _named(beat: Beat) -> str:
    return f"rank {beat.rank} on node {beat.address} (process {beat.pid})"
