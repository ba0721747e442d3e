"""What a plan is made of: ranges of files, their size, and the draw that holds some of them out."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

UNIT_BYTES = 16 << 20  # source bytes that one task reads, about


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


def groups(pieces: Iterable[Weighted]) -> Iterator[tuple[Piece, ...]]:
    """Group consecutive pieces into units of about `UNIT_BYTES` at most."""
    group: list[Piece] = []
    weight = 0.0
    for piece, size in pieces:
        if group and weight + size > UNIT_BYTES:
            yield tuple(group)
            group, weight = [], 0.0
        group.append(piece)
        weight += size
    if group:
        yield tuple(group)
