"""Deterministic, resumable reading of token and label shards into training batches.

The order of an epoch depends on the seed and on the rows' identities alone: not on how rows lie in
files, nor on how many ranks read. Chunks of consecutive rows are shuffled, then the rows inside
each chunk. The order is cut into equal lanes, and a global batch takes the same number of rows from
every lane. A rank takes a share of consecutive columns of the batch, so it reads few row groups,
and batch n is the same rows at any world size. No row is dropped inside an epoch but the last
partial global batch.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smt_ray.data.shards import (
    DTYPES,
    Manifest,
    memory_to_tensor,
    open_parquet,
    row_group_rows,
    whole,
)
from smt_ray.data.storage import Location

Batch = dict[str, torch.Tensor]
LANES = 64
"""Streams that a global batch is made of: each row of it comes from another part of the source."""


class Stream(ABC):
    """A source of batches indexed by step, which may keep state between them."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return this rank's share of global batch `step`."""

    def row(self, step: int, column: int) -> Batch:
        """Return one row of `batch(step)`, the one in `column`."""
        return {name: value[column] for name, value in self.batch(step).items()}

    def carry(self, step: int, state: torch.Tensor) -> None:  # noqa: B027  most keep nothing
        """Take back the state that the objective reached on the batch of `step`."""

    def state(self) -> Batch:
        """Return what a checkpoint must hold beside the step."""
        return {}

    def probe(self) -> Batch | None:
        """Return a batch of the state that is kept, for `Objective.probe`, if there is any."""
        return None


class Reader(Stream):
    """One rank's view of a shard directory; the next batch is read ahead by a thread."""

    def __init__(
        self,
        directory: Location,
        manifest: Manifest,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lanes: int = LANES,
    ) -> None:
        """Index the directory's rows.

        Args:
            directory: the shards.
            manifest: their manifest, as `open_shards` returned it.
            global_batch: rows in one batch over all ranks; a multiple of `world`.
            seed: seed of the order.
            rank: this rank.
            world: number of ranks.
            lanes: streams that a global batch is made of, at most.

        Raises:
            ValueError: if there are fewer rows than one global batch.
        """
        assert global_batch % world == 0
        self.directory, self.manifest = directory, manifest
        self.global_batch, self.seed = global_batch, seed
        self.lanes = max(n for n in range(1, lanes + 1) if global_batch % n == 0)
        share = global_batch // world
        self.columns = slice(rank * share, (rank + 1) * share)
        lane = global_batch // self.lanes
        touched = -(-self.columns.stop // lane) - self.columns.start // lane
        self._kept = 2 * touched + 2  # the current and the next row group of each lane
        self._index()
        if self.rows < global_batch:
            raise ValueError(
                f"global-batch={global_batch}: {directory} holds only {self.rows} sequences; "
                "give a smaller batch or a longer data.source"
            )
        self._groups: OrderedDict[tuple[int, int], Batch] = OrderedDict()
        self._open = lru_cache(maxsize=64)(self._open_shard)
        self._order = lru_cache(maxsize=2)(self._epoch_order)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def _index(self) -> None:
        """Find (shard, row group, row) of every row, sorted by `sequence_id`."""
        self.shards = sorted(self.manifest["shards"])
        ids, places = [], []
        for number, name in enumerate(self.shards):
            file = self.directory / name
            with whole(file), file.open() as stream:
                shard = open_parquet(stream)
                column = shard.read(columns=["sequence_id"])["sequence_id"].to_numpy()
                sizes = [shard.metadata.row_group(g).num_rows for g in range(shard.num_row_groups)]
            place = np.empty((len(column), 3), np.int32)
            place[:, 0] = number
            place[:, 1] = np.repeat(np.arange(len(sizes)), sizes)
            place[:, 2] = np.arange(len(column)) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
            ids.append(column)
            places.append(place)
        order = np.argsort(np.concatenate(ids), kind="stable")
        self.places = np.concatenate(places)[order]

    @property
    def rows(self) -> int:
        """Rows in the directory."""
        return len(self.places)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch."""
        return self.rows // self.global_batch

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, by the manifest's shape."""
        shape, label = self.manifest, 0
        if "memory_tokens" in shape:
            label = shape["memory_tokens"] * shape["width"] * DTYPES[shape["dtype"]].itemsize
        lists = 2 if shape.get("targets") else 1
        return int(shape["sequence_length"] * (4 * lists + label))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Return the epoch's rows as (lanes, steps, rows of a lane in one batch)."""
        random = np.random.default_rng((self.seed, epoch))
        chunk = row_group_rows(self.row_bytes)
        chunks = [
            random.permutation(np.arange(start, min(start + chunk, self.rows)))
            for start in random.permutation(np.arange(0, self.rows, chunk))
        ]
        used = self.steps_per_epoch * self.global_batch
        shape = (self.lanes, self.steps_per_epoch, self.global_batch // self.lanes)
        return np.concatenate(chunks)[:used].reshape(shape)

    def plan(self, step: int) -> np.ndarray:
        """Return this rank's part of global batch `step` as rows of (shard, row group, row)."""
        epoch, step = divmod(step, self.steps_per_epoch)
        return self.places[self._order(epoch)[:, step].reshape(-1)[self.columns]]

    def batch(self, step: int) -> Batch:
        """Return this rank's share of global batch `step`: columns as tensors of equal length."""
        ahead = self._ahead
        ready = ahead[1] if ahead and ahead[0] == step else self._thread.submit(self._read, step)
        batch = ready.result()
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        return batch

    def row(self, step: int, column: int) -> Batch:
        """Return one row of `batch(step)`, and read no more than its row group."""
        return self._thread.submit(self._row, *self.plan(step)[column].tolist()).result()

    def _read(self, step: int) -> Batch:
        rows = [self._row(*at) for at in self.plan(step).tolist()]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, shard: int, group: int, row: int) -> Batch:
        return {name: column[row] for name, column in self._group(shard, group).items()}

    def _group(self, shard: int, group: int) -> Batch:
        """Return a decoded row group; each lane's current and next ones stay in memory."""
        key = (shard, group)
        if key not in self._groups:
            with whole(self.directory / self.shards[shard]):
                self._groups[key] = self._decode(self._open(shard).read_row_group(group))
            if len(self._groups) > self._kept:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _open_shard(self, shard: int) -> pq.ParquetFile:
        return open_parquet((self.directory / self.shards[shard]).open())

    def _decode(self, table: pa.Table) -> Batch:
        """Turn a row group's columns into tensors: `inputs`, `targets`, `memory` and the rest."""
        tokens = _rows(table["tokens"])
        batch = {"sequence_id": torch.from_numpy(table["sequence_id"].to_numpy().copy())}
        if "targets" in table.column_names:
            batch |= {"inputs": tokens, "targets": _rows(table["targets"])}
        else:
            batch |= {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        if "bytes" in table.column_names:
            batch["bytes"] = torch.from_numpy(table["bytes"].to_numpy().copy())
        if "memory" in table.column_names:
            shape = (self.manifest[name] for name in ("memory_tokens", "width", "dtype"))
            batch["memory"] = memory_to_tensor(table["memory"], *shape)
        return batch


def _rows(column: pa.ChunkedArray) -> torch.Tensor:
    """Return a column of fixed-size lists as an int64 tensor (rows, length)."""
    flat = column.combine_chunks().flatten().to_numpy()
    return torch.from_numpy(flat.astype(np.int64)).view(len(column), -1)
