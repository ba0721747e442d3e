"""What a plan is made of: ranges of files, their size, and the draw that holds some of them out."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

UNIT_BYTES = 16 << 20
"""Source bytes that one task reads, about, in a small source, and that any task reads at once."""
UNITS = 64
"""Units of a source that is larger, until they have `LARGEST` bytes."""
LARGEST = 256 << 20
"""Source bytes that one task reads at most, about: what a failure costs, and a shard's size."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of one file, in the count of its format; or of the shards of a Hugging Face split.

    `path` is relative to the interpreter's library (`stdlib`), absolute in its file system (files),
    or the name of the data set's split (`hf:`).
    """

    path: str
    start: int
    stop: int


Weighted = tuple[Piece, float]  # a piece and its size in source bytes


def draw(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` alone."""
    digest = hashlib.blake2b(f"0:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def unit_bytes(total: float) -> int:
    """Return the bytes of one unit of a source of `total` bytes, a multiple of `UNIT_BYTES`."""
    times = min(int(total) // (UNITS * UNIT_BYTES), LARGEST // UNIT_BYTES)
    return UNIT_BYTES * max(1, times)


def groups(pieces: Iterable[Weighted], unit: int) -> Iterator[tuple[Piece, ...]]:
    """Group consecutive pieces into units of about `unit` bytes at most."""
    group: list[Piece] = []
    weight = 0.0
    for piece, size in pieces:
        if group and weight + size > unit:
            yield tuple(group)
            group, weight = [], 0.0
        group.append(piece)
        weight += size
    if group:
        yield tuple(group)
