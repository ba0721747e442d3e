"""Label shards as images of token shards: which rows each holds is arithmetic, not a list of ids.

A label shard is the image of consecutive rows of one token shard: same rows, same order, its name
derived from it. It appears whole or not at all, so what is done is what is there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smt_ray.data.manifest import Manifest
from smt_ray.data.order import Integers
from smt_ray.objectives.objective import hashed

LARGEST = 512 << 20
"""Bytes of a label shard at most: what an interruption can lose of a gang's work."""
FEWEST = 64
"""Label shards of a split at least, where each then has `LEAST` rows."""
LEAST = 128
"""Rows of a label shard, about, that are not worth another one."""


@dataclass(frozen=True, slots=True)
class LabelShard:
    """The image of consecutive rows of a token shard."""

    source: int
    """Number of the token shard."""
    first: int
    """Its first row in that shard."""
    rows: int
    first_id: int
    """Identity of its first row; those of the others follow."""
    name: str

    def chosen(self, fraction: float) -> NDArray[np.bool_]:
        """Return which of its rows get labels."""
        return keep(np.arange(self.first_id, self.first_id + self.rows), fraction)

    def count(self, fraction: float) -> int:
        """Return how many of its rows get labels; that all do is known without a look at each."""
        return self.rows if fraction == 1.0 else int(self.chosen(fraction).sum())


def label_shards(manifest: Manifest, row_bytes: int, fraction: float) -> Iterator[LabelShard]:
    """Yield the label shards of a split in order, made or not.

    Args:
        manifest: that of the token shards.
        row_bytes: bytes of a label row.
        fraction: share of the rows that get labels.
    """
    size = shard_rows(manifest["sequences"], row_bytes, fraction)
    for number, name in enumerate(sorted(manifest["shards"])):
        tokens = manifest["shards"][name]
        for index, first in enumerate(range(0, tokens["rows"], size)):
            rows = min(size, tokens["rows"] - first)
            own = f"{name.removesuffix('.parquet')}-{index:05d}.parquet"
            yield LabelShard(number, first, rows, tokens["first_id"] + first, own)


def shard_rows(sequences: int, row_bytes: int, fraction: float) -> int:
    """Return the token rows that one label shard is made of, a power of two."""
    most = int(LARGEST / (row_bytes * fraction))
    few = max(sequences // FEWEST, int(LEAST / fraction))
    return 1 << max(1, min(most, few)).bit_length() - 1


def keep(ids: Integers, fraction: float) -> NDArray[np.bool_]:
    """Return which sequences are among the labelled `fraction`: a hash of the identity decides.

    Compared as integers: next to a float a hash is rounded, and a high one counts as 2^62.
    """
    return (hashed(torch.from_numpy(ids)) < int(fraction * 2.0**62)).numpy()


def enough(manifest: Manifest, fraction: float, wanted: int) -> bool:
    """Return whether at least `wanted` sequences get labels; stops counting when they do."""
    found = 0
    for shard in label_shards(manifest, 1, fraction):
        found += shard.count(fraction)
        if found >= wanted:
            return True
    return False


def listed(
    manifest: Manifest, row_bytes: int, fraction: float, sizes: dict[str, int]
) -> dict[str, dict[str, int]]:
    """Return what a manifest says of the label shards that are there: `rows`, `first_id`, `bytes`.

    Args:
        manifest: that of the token shards.
        row_bytes: bytes of a label row.
        fraction: share of the rows that get labels.
        sizes: bytes of each label shard, by name.
    """
    return {
        shard.name: {
            "rows": shard.count(fraction),
            "first_id": shard.first_id,
            "bytes": sizes[shard.name],
        }
        for shard in label_shards(manifest, row_bytes, fraction)
    }
