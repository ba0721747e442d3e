"""Reading of token and label shards into training batches: deterministic, resumable, ahead.

A rank takes a share of consecutive columns of every global batch (`order.py`), so it reads few row
groups, and batch n is the same rows at any world size. It opens the shards that it reads, when it
reads them.
"""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smt_ray.data.manifest import Manifest, Shards, open_manifest
from smt_ray.data.order import LANES, Integers, Order, share
from smt_ray.data.rows import Batch, RowGroups, to_batch
from smt_ray.data.storage import Location

Asked = tuple[int | Integers, Integers]
"""Rows by the steps and the columns of the batches that they stand in."""
AHEAD = 2
"""Batches that are read before they are asked for."""
SPREAD = 1
"""Rows of a chunk where few rows must stand for all: those of a validation."""
CHUNKS = 64
"""Chunks of a row group: it is read for each of them anew; more chunks mix better (docs/log.md)."""


class Stream(ABC):
    """A source of batches indexed by step, which may keep state between them."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return this rank's share of global batch `step`."""

    def carry(self, step: int, state: torch.Tensor) -> None:  # noqa: B027  most keep nothing
        """Take back the state that the objective reached on the batch of `step`."""

    def state(self) -> Batch:
        """Return what a checkpoint must hold beside the step: tensors with a column in dim 1."""
        return {}

    def close(self) -> None:  # noqa: B027  most make nothing ahead
        """Give up what is made ahead."""

    def probe(self) -> Batch | None:
        """Return a batch of the state that is kept, for `Objective.probe`, if there is any."""
        return None


class Rows(Stream):
    """A rank's columns of global batches whose rows are known ahead."""

    columns: Integers
    """The rank's columns of the global batch."""

    @abstractmethod
    def follow(self, asked: Iterable[Asked]) -> Generator[Batch]:
        """Yield a batch of the rows of each item of `asked`, made before it is needed.

        `asked` may have no end, and travels to where rows are made.
        """

    def batch(self, step: int) -> Batch:
        """Return this rank's share of global batch `step`; the steps after it are made ahead."""
        if step != self._now:
            if step != self._now + 1 or not self._coming:
                self.close()
                self._coming = self.follow(WholeBatches(step, self.columns))
            self._now, self._latest = step, next(self._coming)
        return self._latest

    def close(self) -> None:
        """Give up what is made ahead."""
        if self._coming:
            self._coming.close()
            self._coming = None

    _now = -1
    _latest: Batch
    _coming: Generator[Batch] | None = None


@dataclass(frozen=True)
class WholeBatches(Iterable[Asked]):
    """All of a rank's columns of the batches from `step` on, for ever."""

    step: int
    columns: Integers

    def __iter__(self) -> Iterator[Asked]:
        """Begin at `step`."""
        return ((number, self.columns) for number in itertools.count(self.step))


class Reader(Rows):
    """One rank's view of a shard directory; the next batches are read ahead by a thread."""

    def __init__(
        self,
        directory: Location,
        manifest: Manifest,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        group: int = 1,
        lanes: int = LANES,
        chunk: int = 0,
    ) -> None:
        """Read nothing yet.

        Args:
            directory: the shards.
            manifest: their manifest.
            global_batch: rows in one batch over all ranks, at least one for each.
            seed: seed of the order.
            rank: this rank.
            world: number of ranks.
            group: consecutive columns that stay on one rank.
            lanes: streams that a global batch is made of, at most.
            chunk: consecutive rows that stay close to each other; 0: a part of a row group.

        Raises:
            ValueError: if there are fewer rows than one global batch.
        """
        assert global_batch >= world
        self.manifest, self.shards = manifest, Shards(directory, manifest)
        chunk = chunk or chunk_rows(manifest["row_group_rows"])
        if self.shards.rows < global_batch:
            raise ValueError(
                f"global-batch={global_batch}: {directory} holds only {self.shards.rows} "
                "sequences; give a smaller batch or a longer data.source"
            )
        self.order = Order(
            self.shards.rows, chunk=chunk, global_batch=global_batch, seed=seed, lanes=lanes
        )
        self.columns = np.arange(global_batch)[share(global_batch, rank, world, group)]
        touched = len({*(self.columns * self.order.lanes // global_batch).tolist()})
        # A lane's chunk may lie in two row groups.
        self.groups = RowGroups(self.shards, kept=2 * touched + 2)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

    def follow(self, asked: Iterable[Asked]) -> Generator[Batch]:
        """Yield a batch of the rows of each item of `asked`, read before it is needed."""
        coming: deque[Future[Batch]] = deque()
        for steps, columns in asked:
            coming.append(self._thread.submit(self.read, self.order.at(steps, columns)))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def read(self, rows: Integers) -> Batch:
        """Return some rows, by their numbers, as tensors of equal length."""
        return to_batch(self.groups.take(rows), self.manifest)


def chunk_rows(group: int) -> int:
    """Return the rows that stay close to each other where a row group has `group` rows."""
    return max(1, group // CHUNKS)


def open_reader(
    directory: Location, kind: Any, expected: dict[str, Any], **settings: Any
) -> Reader:
    """Return a reader of a directory whose manifest must have the fields of `expected`."""
    return Reader(directory, open_manifest(directory, kind, **expected), **settings)
