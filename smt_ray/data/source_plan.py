"""A source as it was found, once: its units of work, size, and what tells its versions apart."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smt_ray.config import DataConfig, changed, require_unmasked
from smt_ray.data.pieces import groups, unit_bytes
from smt_ray.data.sources import (
    SPLITS,
    ExampleKind,
    Unit,
    explained,
    kind_of,
    load_tokenizer_of,
    read,
    resolve,
    too_short,
)
from smt_ray.data.tokenizers import Tokenizer

FORMAT = 4
"""Of the token shards: raised when their meaning changes."""


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A source as it was found once; the token stage, fingerprints and estimates take it."""

    config: DataConfig
    """Where it is, a local path absolute, and how it is cut."""
    tokenizer: Tokenizer
    units: tuple[Unit, ...]
    """Of both splits, by index."""
    unit_fingerprints: tuple[str, ...]
    """What decides the shards of each unit: settings, tokenizer, and the version of its files."""
    size: int
    """Tokens, about: one a byte of text; 0 for `hf:`, where nobody knows."""

    @property
    def fingerprint(self) -> str:
        """What decides all token shards."""
        return _digest(self.unit_fingerprints)

    def split(self, name: str) -> tuple[Unit, ...]:
        """Return the units of a split."""
        return tuple(unit for unit in self.units if unit.split == name)


def plan_source(config: DataConfig) -> SourcePlan:
    """Look at a source, once, and check all that is known before the whole of it is read.

    Raises:
        ValueError: naming the field at fault, in one line (a `SourceError` but for the tokenizer).
    """
    require_unmasked("data.source", config.source)
    require_unmasked("data.tokenizer", config.tokenizer)
    tokenizer, kind, own = load_tokenizer_of(config), kind_of(config), resolve(config)
    with explained(config):
        if isinstance(kind, ExampleKind):
            kind.check(own)
        pieces = kind.pieces(own)
    size = sum(weight for side in pieces.values() for _, weight in side)
    numbers, unit = itertools.count(), unit_bytes(size)
    units = tuple(
        Unit(next(numbers), split, group)
        for split in SPLITS
        for group in groups(pieces[split], unit)
    )
    for split in SPLITS:
        _check_split(config, split, [unit for unit in units if unit.split == split], tokenizer)
    return SourcePlan(
        config=own,
        tokenizer=tokenizer,
        units=units,
        unit_fingerprints=tuple(_fingerprints(config, units, tokenizer)),
        size=0 if kind.prefix == "hf:" else int(size),
    )


def _check_split(config: DataConfig, split: str, units: list[Unit], tokenizer: Tokenizer) -> None:
    """Check that a split can fill a sequence, as far as its size and its first document tell."""
    kind = kind_of(config)
    pieces = [piece for unit in units for piece in unit.pieces]
    # A token covers a byte or more; the rows of a compressed file and shards tell nothing.
    packed = any(p.path.lower().endswith((".parquet", ".gz", ".zst")) for p in pieces)
    if not kind.prefix and not packed:
        most = sum(p.stop - p.start + 1 for p in pieces) - 1
        if most <= config.sequence_length:
            raise too_short(config, split, most)
    documents = (found for unit in units for found in read(unit, config, tokenizer))
    if next(documents, None) is None:
        raise too_short(config, split, 0)


def _fingerprints(config: DataConfig, units: Iterable[Unit], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a digest of all that decides what each unit's shards hold.

    Names count from where the source begins, so that a source may be found by another way there.
    """
    units = list(units)
    paths = {piece.path for unit in units for piece in unit.pieces}
    with explained(config):
        versions = kind_of(config).versions(resolve(config), paths)
    root = os.path.commonpath([os.path.dirname(path) for path in paths] or [""])
    names = {path: path[len(root) :] for path in paths}
    fields = {k: v for k, v in changed(config).items() if k not in {"source", "tokenizer"}}
    settings = (FORMAT, sorted(fields.items()), kind_of(config).prefix, tokenizer.digest)
    for unit in units:
        content = [
            (names[piece.path], versions[piece.path], piece.start, piece.stop)
            for piece in unit.pieces
        ]
        yield _digest((settings, unit.index, unit.split, content))


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
