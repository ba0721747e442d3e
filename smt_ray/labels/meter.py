"""The clock of the label factory, an actor: how fast gangs are, and how often one was rebuilt."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from smt_ray.cluster.prometheus import count
from smt_ray.cluster.session import beside_driver
from smt_ray.cluster.view import Progress, View, watched

logger = logging.getLogger(__name__)
STAGE = "labels"
LATEST = 4096
"""Batches of a gang by which its rate is told."""


@ray.remote(num_cpus=0)
class Meter:
    """Knows the gangs, deals batches out to them, and clocks these."""

    def __init__(self, run: str, gangs: list[str]) -> None:
        """Start with nothing labelled by `run`, whose gangs have these names."""
        self._run = run
        self._joined: set[str] = set()
        self._rebuilds, self._held = dict.fromkeys(gangs, 0), dict.fromkeys(gangs, 0)
        self._begun: dict[str, float] = {}
        self._ends: dict[str, deque[tuple[float, int]]] = {}
        self._labels, self._why = 0, ""

    def join(self, gang: str) -> None:
        """Note that a gang is built; a second time, that it is built again by a new owner."""
        if gang in self._joined:
            self.rebuilt(gang, "the owner of a gang is gone")
        self._joined.add(gang)

    def rebuilt(self, gang: str, why: str) -> None:
        """Note that a gang is built again, and why."""
        self._rebuilds[gang] += 1
        self._why = why
        count("smt_ray_gang_rebuilds", self._run, STAGE)

    def gangs(self) -> dict[str, int]:
        """Return how often each gang was rebuilt, by name."""
        return self._rebuilds

    def why(self) -> str:
        """Return why a gang was rebuilt the last time."""
        return self._why

    def begin(self) -> str:
        """Note that a batch begins; return its gang: the one with the fewest batches in hand."""
        gang = min(self._held, key=self._held.__getitem__)
        self._held[gang] += 1
        self._begun.setdefault(gang, time.monotonic())
        return gang

    def end(self, gang: str, labels: int) -> None:
        """Note that a batch has ended with so many labels."""
        if not self._held[gang]:  # it began before Ray restarted this actor
            return
        self._held[gang] -= 1
        self._ends.setdefault(gang, deque(maxlen=LATEST)).append((time.monotonic(), labels))
        self._labels += labels
        count("smt_ray_labels", self._run, STAGE, labels)

    def rate(self) -> float:
        """Return labels per second, 0 if there were none."""
        return label_rate(self._begun, [[*ends] for ends in self._ends.values()])

    def labels(self) -> int:
        """Return how many labels there are yet."""
        return self._labels


@contextmanager
def metered(run: str, labels: int, gangs: list[str], name: str) -> Iterator[Any]:
    """Show the progress of the labels on the terminal, rebuilt gangs included.

    Args:
        run: name of the run.
        labels: how many are to be made; 0: nobody knows, and the trainer's progress is shown.
        gangs: names of the gangs.
        name: the meter's, by which the gangs find it.

    Yields:
        The meter.
    """
    actor: Any = Meter
    meter = actor.options(
        name=name,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=beside_driver(),
    ).remote(run, gangs)
    known, first = 0, (0, 0.0)  # the first labels that were seen, and when

    def look(view: View, now: float) -> None:
        nonlocal known, first
        asked = meter.labels, meter.gangs, meter.why
        done, rebuilt, why = ray.get([question.remote() for question in asked])
        if done and not first[0]:
            first = (done, now)
        rate = (done - first[0]) / (now - first[1]) if done > first[0] else 0.0
        if (rebuilds := sum(rebuilt.values())) > known:
            known = rebuilds
            logger.warning("%s: %s; its gang is built again (%d in all)", STAGE, why, known)
        if labels:
            view.show(Progress(stage=STAGE, step=done, steps=labels, rate=rate, unit="labels"), now)

    try:
        with watched(look):
            yield meter
    finally:
        ray.kill(meter)  # streams that are not used any more may still hold it


def label_rate(begun: dict[str, float], gangs: list[list[tuple[float, int]]]) -> float:
    """Return labels per second while all gangs were at work: the sum of their own rates.

    A gang's first batch, which pays for its start, is left out. With too few batches for that it is
    the rate from the first begin to the last end.

    Args:
        begun: when each gang's first batch began.
        gangs: when each gang's batches ended, and with how many labels, in order.
    """
    if not gangs:
        return 0.0
    start, stop = max(ends[0][0] for ends in gangs), min(ends[-1][0] for ends in gangs)
    steady = [[(at, labels) for at, labels in ends if start <= at <= stop] for ends in gangs]
    if min(map(len, steady)) > 1:
        return sum(
            sum(labels for _, labels in ends[1:]) / (ends[-1][0] - ends[0][0]) for ends in steady
        )
    last = max(ends[-1][0] for ends in gangs)
    return sum(labels for ends in gangs for _, labels in ends) / (last - min(begun.values()))
