"""Windows in flight: sequences with the states that an RNN reached in them, visit by visit.

Column j of the global batch has fresh windows of its own: the rows that column j of the reader's
batches holds, in order. So which windows a step visits depends on no rank and no world size, and a
saved pool is dealt out to any number of ranks.
Shapes: P windows in flight, B windows in one visit, L timesteps, K memory tokens, D width.
"""

import torch
from torch import Tensor

from smt_ray.data.reader import Batch, Stream
from smt_ray.objectives.objective import hashed, previous


class Windows(Stream):
    """P windows visited round robin, B at a time; a visited one may retire for a fresh one."""

    def __init__(
        self,
        fresh: Stream,
        *,
        factor: int,
        visits: float,
        depth: int,
        seed: int,
        shape: tuple[int, int] | None = None,
        saved: Batch | None = None,
    ) -> None:
        """Fill the pool from `fresh`, or from a `saved` state.

        Args:
            fresh: batches of B sequences, labelled or not.
            factor: P / B.
            visits: mean number of visits of a window; it retires at age L at the latest.
            depth: timesteps that a visit adds to the age of a window.
            seed: seed of the retirements.
            shape: (K, D), where sequences have no labels to start from, but the empty memory.
            saved: an earlier `state()`, or what `dealt` made of several ranks'.
        """
        self.fresh, self.factor, self.seed = fresh, factor, seed
        self.visits, self.depth, self.shape = visits, depth, shape
        if saved is None:
            batches = [self._admitted(fresh.batch(step)) for step in range(factor)]
            self.pool = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
            self._taken = torch.full((len(self.pool["sequence_id"]) // factor,), factor)
        else:
            self._taken = saved["taken"].clone()
            self.pool = {name: value for name, value in saved.items() if name != "taken"}

    def batch(self, step: int) -> Batch:
        """Return the B windows whose turn `step` is."""
        return {name: value[self._turn(step)] for name, value in self.pool.items()}

    def carry(self, step: int, state: Tensor) -> None:
        """Store the states (B, L, K, D) that the visit of `step` reached, and retire windows."""
        turn = self._turn(step)
        self.pool["state"][turn] = state.to(self.pool["state"])
        self.pool["age"][turn] += self.depth
        chance = hashed(self.seed, step, self.pool["sequence_id"][turn]).double() / 2.0**62
        old = self.pool["age"][turn] >= self.pool["inputs"].shape[1]
        retired = (chance < 1 / self.visits) | old
        for column in retired.nonzero().flatten().tolist():
            fresh = self.fresh.row(int(self._taken[column]), column)
            self._taken[column] += 1
            admitted = self._admitted({name: value[None] for name, value in fresh.items()})
            for name, value in admitted.items():
                self.pool[name][turn.start + column] = value[0]

    def state(self) -> Batch:
        """Return the pool, and `taken` (B,): how many fresh windows each column has had."""
        return {**self.pool, "taken": self._taken}

    def probe(self) -> Batch:
        """Return always the same B windows of the pool, as they are now."""
        return self.batch(0)

    def _turn(self, step: int) -> slice:
        size = len(self.pool["sequence_id"]) // self.factor
        start = step % self.factor * size
        return slice(start, start + size)

    def _admitted(self, batch: Batch) -> Batch:
        """Add age 0 and the states of the labels one step back, or empty memories, to a batch."""
        age = torch.zeros_like(batch["sequence_id"])
        if self.shape is None:
            return {**batch, "age": age, "state": previous(batch["memory"])}
        return {**batch, "age": age, "state": torch.zeros(*batch["inputs"].shape, *self.shape)}


def dealt(states: list[Batch], rank: int, world: int, factor: int) -> Batch | None:
    """Deal the windows that any number of ranks saved out to `rank` of `world`.

    Args:
        states: the ranks' states in rank order, none where nothing was saved.
        rank: the rank that goes on.
        world: the number of ranks that go on.
        factor: P / B.
    """
    if not states:
        return None
    mine = {}
    for name in states[0]:
        turns = 1 if name == "taken" else factor
        columns = torch.cat([state[name].unflatten(0, (turns, -1)) for state in states], dim=1)
        mine[name] = columns.chunk(world, dim=1)[rank].flatten(0, 1)
    return mine
