"""The order in which rows are read: arithmetic, not an index.

An epoch is a seeded permutation of chunks of consecutive rows, then of the rows inside each chunk.
It is cut into equal lanes, and a global batch takes the same number of rows from every lane. So the
row in each column of each batch is known without memory that grows with the rows; it depends on no
file and no world size. No row is left out of an epoch but the last partial global batch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

LANES = 64
"""Streams that a global batch is made of: each row of it comes from another part of the source."""
ROUNDS = 8
"""Of the Feistel network (Luby and Rackoff, 1988); four are too few for small sizes."""


def share(total: int, rank: int, world: int, group: int = 1) -> slice:
    """Return the consecutive ones of `total` things that are a rank's; `group` stay together."""
    groups = total // group
    return slice(rank * groups // world * group, (rank + 1) * groups // world * group)


class Order:
    """Which row stands in each column of each global batch."""

    def __init__(
        self, rows: int, *, chunk: int, global_batch: int, seed: int, lanes: int = LANES
    ) -> None:
        """Order `rows` rows.

        Args:
            rows: how many there are, at least one global batch.
            chunk: consecutive rows that stay close to each other.
            global_batch: rows in one batch over all ranks.
            seed: seed of the permutations.
            lanes: streams that a global batch is made of, at most.
        """
        self.rows, self.chunk, self.global_batch, self.seed = rows, chunk, global_batch, seed
        self.lanes = max(n for n in range(1, lanes + 1) if global_batch % n == 0)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch."""
        return self.rows // self.global_batch

    def at(self, steps: int | Integers, columns: Integers) -> Integers:
        """Return the rows in `columns` of the batches of `steps`; both are broadcast."""
        epoch, step = np.divmod(np.asarray(steps, np.int64), self.steps_per_epoch)
        a_lane = self.global_batch // self.lanes
        lane, within = np.divmod(columns, a_lane)
        place = (lane * self.steps_per_epoch + step) * a_lane + within
        return self._row(*np.broadcast_arrays(epoch, place))

    def _row(self, epoch: Integers, place: Integers) -> Integers:
        """Return the rows at some places of their epochs' orders.

        The last chunk may be short. It stands at a random place among the whole ones.
        """
        whole, rest = divmod(self.rows, self.chunk)
        key = mixed(self.seed, epoch)
        short = (mixed(key, 0) % np.uint64(whole + 1)).astype(np.int64) * self.chunk
        among = (short <= place) & (place < short + rest)
        others = np.where(place >= short + rest, place - rest, place)
        number, offset = np.divmod(np.where(among, 0, others), self.chunk)
        chunk = np.where(among, whole, permuted(number, max(1, whole), mixed(key, 1)))
        offset = np.where(among, place - short, offset)
        size = np.where(among, rest, self.chunk)
        return chunk * self.chunk + permuted(offset, size, mixed(key, chunk + 2))


def permuted(places: Integers, size: Any, key: Words) -> Integers:
    """Return where a seeded permutation of `range(size)` sends `places`.

    A Feistel network on the next even number of bits, walked until it is back in the range. `size`
    and `key` are broadcast; no memory grows with `size`.
    """
    size = np.maximum(np.broadcast_to(np.asarray(size, np.uint64), places.shape), np.uint64(1))
    key = np.broadcast_to(key, places.shape)
    bits = np.ceil(np.log2(size.astype(np.float64)) / 2).astype(np.uint64)
    found = places.astype(np.uint64)
    left = np.arange(found.size)
    flat = [part.reshape(-1) for part in (found, size, key, np.maximum(bits, np.uint64(1)))]
    found, size, key, bits = flat[0].copy(), *flat[1:]
    while left.size:
        found[left] = _feistel(found[left], key[left], bits[left])
        left = left[found[left] >= size[left]]
    return found.astype(np.int64).reshape(places.shape)


def _feistel(value: Words, key: Words, bits: Words) -> Words:
    """Permute numbers of 2 * `bits` bits."""
    mask = (np.uint64(1) << bits) - np.uint64(1)
    high, low = value >> bits, value & mask
    for number in range(ROUNDS):
        high, low = low, high ^ (mixed(key, low + np.uint64(number << 56)) & mask)
    return (high << bits) | low


def mixed(key: Any, value: Any) -> Words:
    """Mix two integers into uniform 64-bit ones (SplitMix64)."""
    key, value = (np.atleast_1d(part).astype(np.uint64) for part in (key, value))
    state = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + value  # zeros stay no zeros
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state
