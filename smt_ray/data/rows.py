"""Rows of shards in memory: as they are stored, and as tensors."""

from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from smt_ray.data.manifest import Manifest, Shards
from smt_ray.data.order import Integers
from smt_ray.data.shards import from_column, from_memory, target_type, to_column, token_type, whole
from smt_ray.objectives.objective import IGNORED

Batch = dict[str, torch.Tensor]
Columns = dict[str, NDArray[Any]]
"""Rows as they are stored: a column of numbers, or of raw bytes (N, length)."""
OPEN = 64
"""Shards that stay open."""


class RowGroups:
    """The rows of shards by their numbers; the row groups that were read last stay in memory."""

    def __init__(self, shards: Shards, kept: int) -> None:
        """Read nothing yet; keep so many row groups."""
        self.shards, self.kept = shards, kept
        self.held: OrderedDict[tuple[int, int], Columns] = OrderedDict()
        self._open = lru_cache(maxsize=OPEN)(shards.open)

    def take(self, rows: Integers) -> Columns:
        """Return some rows.

        Raises:
            ValueError: in one line, if a shard is missing or damaged.
        """
        shard, row = self.shards.find(rows)
        group, row = np.divmod(row, self.shards.manifest["row_group_rows"])
        places, where = np.unique(np.stack((shard, group)), axis=1, return_inverse=True)
        found: Columns = {}
        for number, (of_shard, of_group) in enumerate(places.T.tolist()):
            mine = where.reshape(-1) == number
            for name, column in self._group(of_shard, of_group).items():
                if name not in found:
                    found[name] = np.empty((len(rows), *column.shape[1:]), column.dtype)
                found[name][mine] = column[row[mine]]
        return found

    def _group(self, shard: int, group: int) -> Columns:
        key = (shard, group)
        if key not in self.held:
            with whole(self.shards.directory / self.shards.names[shard]):
                table = self._open(shard).read_row_group(group)
            self.held[key] = to_columns(table)
            if len(self.held) > self.kept:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return self.held[key]


def to_columns(table: pa.Table) -> Columns:
    """Return a table's columns as they are stored, on its own buffers."""
    return {
        name: from_column(table[name], np.dtype(np.uint8))
        if pa.types.is_fixed_size_binary(table[name].type)
        else table[name].to_numpy()
        for name in table.column_names
    }


def to_table(columns: Columns) -> pa.Table:
    """Return stored columns as a table on their own storage."""
    return pa.table(
        {
            name: to_column(value) if value.ndim > 1 else pa.array(value)
            for name, value in columns.items()
        }
    )


def to_batch(columns: Columns, manifest: Manifest) -> Batch:
    """Turn stored rows into tensors: `inputs`, `targets`, `memory` and the rest.

    Where a row has few targets `asked` tells their positions. All rows have equally many: those of
    a row with fewer targets are filled up with positions that have none.

    Args:
        columns: the rows.
        manifest: that of their directory.
    """
    vocabulary = manifest["vocabulary"]
    batch: Batch = {
        name: torch.from_numpy(columns[name])
        for name in ("sequence_id", "bytes")
        if name in columns
    }
    tokens = _integers(columns["tokens"], token_type(vocabulary))
    if "targets" in columns:
        batch["inputs"] = tokens
        targets = _integers(columns["targets"], target_type(vocabulary))
        batch["targets"] = targets
        if manifest["targets"] < targets.shape[1]:
            batch["asked"] = asked(targets, manifest["targets"])
    else:
        batch |= {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
    if "memory" in columns:
        shape = (manifest[name] for name in ("memory_tokens", "width", "dtype"))
        batch["memory"] = from_memory(columns, *shape)
    return batch


def asked(targets: torch.Tensor, most: int) -> torch.Tensor:
    """Return the positions of the targets of each row (B, L), `most` a row, in order."""
    none = (targets == IGNORED).to(torch.uint8)
    return none.argsort(dim=1, stable=True)[:, :most].contiguous()


def _integers(raw: NDArray[Any], dtype: np.dtype[Any]) -> torch.Tensor:
    """Return raw integers as an int64 tensor (rows, length)."""
    return torch.from_numpy(raw.view(dtype).astype(np.int64))
