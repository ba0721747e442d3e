"""Windows in flight: sequences with the states that an RNN reached in them, visit by visit.

Column j of the global batch has fresh windows of its own: the rows that column j of the batches
holds, in order. So which windows a step visits depends on no rank and no world size, and is known
before they are read. A checkpoint holds of a window where its row stands, its age and its states;
the rest is read again.
Shapes: P windows in flight, B windows in one visit, F = P / B turns, L timesteps, K memory tokens,
D width.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smt_ray.data.order import Integers, mixed
from smt_ray.data.reader import Asked, Rows, Stream
from smt_ray.data.rows import Batch
from smt_ray.objectives.objective import previous


@dataclass
class Schedule:
    """Which windows retire when, for some columns of the global batch: no data is asked for it."""

    columns: Integers
    """Columns of the global batch, B."""
    visits: float
    """Mean number of visits of a window."""
    depth: int
    """Timesteps that a visit adds to the age of a window."""
    oldest: int
    """Age at which a window retires at the latest, L."""
    seed: int
    """Of the retirements."""
    held: Integers
    """(F, B): the batch that each window in flight comes from."""
    age: Integers
    """(F, B): timesteps that its states are away from a label."""
    taken: Integers
    """(B,): how many windows each column has had."""

    def copy(self) -> "Schedule":
        """Return a schedule that goes on from here on its own."""
        own = {name: getattr(self, name).copy() for name in ("held", "age", "taken")}
        return Schedule(self.columns, self.visits, self.depth, self.oldest, self.seed, **own)

    def visit(self, step: int) -> NDArray[np.intp]:
        """Age the windows whose turn `step` is; return at which of `columns` they are now fresh."""
        turn = step % len(self.held)
        self.age[turn] += self.depth
        key = mixed(mixed(mixed(self.seed, step), self.columns), self.held[turn])
        chance = (key >> np.uint64(11)).astype(np.float64) / 2.0**53
        retired = (chance < 1 / self.visits) | (self.age[turn] >= self.oldest)
        at = retired.nonzero()[0]
        self.held[turn, at] = self.taken[at]
        self.age[turn, at] = 0
        self.taken[at] += 1
        return at


@dataclass(frozen=True)
class FreshWindows(Iterable[Asked]):
    """The windows that a schedule admits from the visit of `step` on, visit by visit, for ever."""

    schedule: Schedule
    step: int

    def __iter__(self) -> Iterator[Asked]:
        """Begin at `step`; a visit that admits none is left out."""
        own = self.schedule.copy()
        for step in itertools.count(self.step):
            at = own.visit(step)
            if len(at):
                yield own.held[step % len(own.held), at], own.columns[at]


class Windows(Stream):
    """P windows visited round robin, B at a time; a visited one may retire for a fresh one."""

    def __init__(
        self,
        rows: Rows,
        *,
        factor: int,
        visits: float,
        depth: int,
        seed: int,
        length: int,
        shape: tuple[int, int] | None = None,
        saved: Batch | None = None,
        step: int = 0,
    ) -> None:
        """Fill the pool with fresh windows, or with those of a `saved` state.

        Args:
            rows: sequences, labelled or not; the windows are of its columns.
            factor: F.
            visits: mean number of visits of a window; it retires at age L at the latest.
            depth: timesteps that a visit adds to the age of a window.
            seed: seed of the retirements.
            length: L.
            shape: (K, D), where sequences have no labels to start from, but the empty memory.
            saved: an earlier `state()` of these columns, after `step` visits.
            step: where it goes on.
        """
        self.shape = shape
        columns = rows.columns
        held = np.repeat(np.arange(factor)[:, None], len(columns), axis=1)
        start = {"held": held, "age": held * 0, "taken": np.full(len(columns), factor)}
        if saved is not None:
            start = {name: saved[name].numpy().copy() for name in start}
            start["taken"] = start["taken"][0]
        self.schedule = Schedule(columns, visits, depth, length, seed, **start)
        self.pool = self._filled(rows, saved)
        self.fresh = rows.follow(FreshWindows(self.schedule.copy(), step))

    def _filled(self, rows: Rows, saved: Batch | None) -> Batch:
        """Read the windows in flight, turn by turn."""
        turns = rows.follow([(held, self.schedule.columns) for held in self.schedule.held.copy()])
        pool: dict[str, list[Tensor]] = {}
        for batch in turns:
            for name, value in self._admitted(batch).items():
                pool.setdefault(name, []).append(value)
        whole = {name: torch.stack(values) for name, values in pool.items()}
        if saved is not None:
            whole["state"] = saved["state"].clone()
        return whole

    def batch(self, step: int) -> Batch:
        """Return the B windows whose turn `step` is."""
        turn = step % len(self.schedule.held)
        age = torch.from_numpy(self.schedule.age[turn].copy())
        return {**{name: value[turn] for name, value in self.pool.items()}, "age": age}

    def carry(self, step: int, state: Tensor) -> None:
        """Store the states (B, L, K, D) that the visit of `step` reached, and retire windows."""
        turn = step % len(self.schedule.held)
        self.pool["state"][turn] = state.to(self.pool["state"])
        at = self.schedule.visit(step)
        if len(at):
            for name, value in self._admitted(next(self.fresh)).items():
                self.pool[name][turn, at] = value

    def state(self) -> Batch:
        """Return what the windows are, (F, B) or more, and `taken` (1, B)."""
        own = self.schedule
        parts = {"held": own.held, "age": own.age, "taken": own.taken[None]}
        kept = {name: torch.from_numpy(part.copy()) for name, part in parts.items()}
        return {**kept, "state": self.pool["state"]}

    def close(self) -> None:
        """Give up the windows that are made ahead."""
        self.fresh.close()

    def probe(self) -> Batch:
        """Return always the same B windows of the pool, as they are now."""
        return self.batch(0)

    def _admitted(self, batch: Batch) -> Batch:
        """Add the states of the labels one step back, or empty memories, to fresh windows.

        They have the number format of the labels.
        """
        if self.shape is not None:
            return {**batch, "state": torch.zeros(*batch["inputs"].shape, *self.shape)}
        return {**batch, "state": previous(batch["memory"])}
