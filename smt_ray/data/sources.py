"""Where sequences come from: text, synthetic tasks, images.

`plan` turns a `DataConfig` into units of work of bounded size, the same for the same configuration
and files; `read` streams what one unit holds, on whatever node it runs, and `packer` makes rows of
it. Text is documents, cut into windows; tasks and images are examples with targets of their own.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from smt_ray.config import DataConfig, masked, require_unmasked
from smt_ray.data.files import file_contents, file_pieces, read_files, say_passed_over
from smt_ray.data.formats import Document
from smt_ray.data.hub import hub_contents, hub_pieces, read_hub
from smt_ray.data.images import (
    DIGITS,
    check_pixels,
    images_of,
    pixel_contents,
    pixel_pieces,
    pixel_vocabulary,
    read_pixels,
)
from smt_ray.data.packer import ExamplePacker, Examples, Packer, WindowPacker
from smt_ray.data.pieces import Piece, Weighted, groups
from smt_ray.data.synthetic import check_task, read_task, task_pieces, task_vocabulary
from smt_ray.data.tokenizers import NumberTokenizer, Tokenizer, load_tokenizer

SPLITS = ("train", "validation")
FORMAT = 1
"""Of the token shards; part of the mark of a unit."""


class SourceError(ValueError):
    """What is wrong with the source, in one line that starts with the field at fault."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task reads: its index over all splits, its split, and its pieces in order."""

    index: int
    split: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How sources whose names begin with `prefix` are cut and read.

    `pieces` returns each split's; `read` yields what some of a split's hold, its last argument says
    whether that is validation; `contents` returns a digest of what is behind each piece's path.
    """

    prefix: str
    pieces: Callable[[DataConfig], dict[str, list[Weighted]]]
    read: Callable[[tuple[Piece, ...], DataConfig, bool], Iterator[Any]]
    contents: Callable[[DataConfig, Iterable[str]], dict[str, str]]


@dataclass(frozen=True, slots=True)
class ExampleKind(Kind):
    """A kind that is no text: it has its own vocabulary and its own rule for the length."""

    vocabulary: Callable[[DataConfig], int]
    check: Callable[[DataConfig], None]


KINDS = (
    ExampleKind(
        "task:", task_pieces, read_task, lambda _, paths: dict.fromkeys(paths, ""),
        task_vocabulary, check_task,
    ),
    ExampleKind(
        "pixels:", pixel_pieces, read_pixels, pixel_contents, pixel_vocabulary, check_pixels
    ),
    Kind("hf:", hub_pieces, read_hub, hub_contents),
    Kind("", file_pieces, lambda parts, config, _: read_files(parts, config), file_contents),
)  # fmt: skip


def resolve(config: DataConfig) -> DataConfig:
    """Return the configuration with a local source made absolute, for any process to read."""
    prefix = _kind(config).prefix
    name = config.source.removeprefix(prefix)
    if prefix == "task:" or config.source in {"stdlib", DIGITS} or "://" in name:
        return config
    place = Path(name).expanduser().absolute()
    if prefix == "hf:" and not place.exists():
        return config
    return replace(config, source=f"{prefix}{place}")


def load_tokenizer_of(config: DataConfig) -> Tokenizer:
    """Return the source's tokenizer: the configured one for text, else its own numbers.

    Raises:
        ValueError: naming the field at fault, if the configured one is not for this source.
    """
    kind = _kind(config)
    given = load_tokenizer(config.tokenizer)
    if not isinstance(kind, ExampleKind):
        if isinstance(given, NumberTokenizer):
            raise _error(config, f"is text, but {config.tokenizer} knows numbers only")
        return given
    with _explained(config):
        own = NumberTokenizer(kind.vocabulary(resolve(config)))
    if config.tokenizer != "bytes" and (given.name, given.vocabulary) != (own.name, own.vocabulary):
        raise ValueError(
            f"data.tokenizer={config.tokenizer!r}: has {given.vocabulary} {given.name}, but "
            f"{config.source} has {own.vocabulary} {own.name} of its own; leave this out"
        )
    return own


def plan(config: DataConfig) -> dict[str, list[Unit]]:
    """Return the units of work of each split.

    Raises:
        SourceError: if nothing matches the source, or its files are empty or of an unknown kind.
    """
    pieces = _pieces(config)
    numbers = itertools.count()
    return {
        split: [Unit(next(numbers), split, group) for group in groups(pieces[split])]
        for split in SPLITS
    }


def read(
    unit: Unit, config: DataConfig, tokenizer: Tokenizer
) -> Iterator[Document] | Iterator[Examples]:
    """Yield the documents of one unit (text, bytes or int32 token ids), or its examples.

    Raises:
        SourceError: if a file is unreadable, or token ids are outside the vocabulary.
    """
    with _explained(config):
        for content in _kind(config).read(unit.pieces, resolve(config), unit.split == "validation"):
            if isinstance(content, np.ndarray):
                yield _checked(content, tokenizer)
            elif content:
                yield content


def packer(unit: Unit, config: DataConfig, tokenizer: Tokenizer) -> Packer:
    """Return what makes rows of that which `read` yields of a unit."""
    length = config.sequence_length
    if isinstance(_kind(config), ExampleKind):
        return ExamplePacker(length, unit.index, covers=config.kind == "pixels")
    return WindowPacker(tokenizer, length, unit.index)


def check(config: DataConfig) -> None:
    """Check, without a cluster, all that is known before the whole source is read.

    Raises:
        ValueError: naming the field at fault, in one line (a `SourceError` but for the tokenizer).
    """
    require_unmasked("data.source", config.source)
    require_unmasked("data.tokenizer", config.tokenizer)
    tokenizer, kind = load_tokenizer_of(config), _kind(config)
    if isinstance(kind, ExampleKind):
        with _explained(config):
            kind.check(resolve(config))
    if not kind.prefix:
        with _explained(config):
            say_passed_over(resolve(config))
    for split, units in plan(config).items():
        pieces = [piece for unit in units for piece in unit.pieces]
        # A token covers a byte or more; the rows of a compressed file and shards tell nothing.
        packed = any(p.path.lower().endswith((".parquet", ".gz", ".zst")) for p in pieces)
        if not kind.prefix and not packed:
            most = sum(p.stop - p.start + 1 for p in pieces) - 1
            if most <= config.sequence_length:
                raise too_short(config, split, most)
        if not units or next(read(units[0], config, tokenizer), None) is None:
            raise too_short(config, split, 0)


def image_shape(config: DataConfig) -> tuple[int, int]:
    """Return height and width of the images of a `pixels:` source.

    Raises:
        SourceError: if the source is unreadable.
    """
    with _explained(config):
        images = images_of(resolve(config))
    return images.height, images.width


def identity(config: DataConfig) -> str:
    """Return a digest of the source's pieces, of their content, and of the tokenizer's."""
    units = [unit for group in plan(config).values() for unit in group]
    return _digest(unit_marks(config, units, load_tokenizer_of(config)))


def unit_marks(config: DataConfig, units: Iterable[Unit], tokenizer: Tokenizer) -> list[str]:
    """Return a digest of all that decides what each unit's shards hold.

    Names count from where the source begins, so that a source may be found by another way there.
    """
    units = list(units)
    paths = {piece.path for unit in units for piece in unit.pieces}
    with _explained(config):
        contents = _kind(config).contents(resolve(config), paths)
    root = os.path.commonpath([os.path.dirname(path) for path in paths] or [""])
    names = {path: path[len(root) :] for path in paths}
    fields = {k: v for k, v in asdict(config).items() if k not in {"source", "tokenizer"}}
    settings = (FORMAT, sorted(fields.items()), _kind(config).prefix, tokenizer.digest)
    return [
        _digest((settings, unit.index, unit.split, [
            (names[piece.path], contents[piece.path], piece.start, piece.stop)
            for piece in unit.pieces
        ]))
        for unit in units
    ]  # fmt: skip


def size(config: DataConfig) -> int:
    """Return about how many tokens the source has, one a byte; 0 for `hf:`, where none knows."""
    if _kind(config).prefix == "hf:":
        return 0
    return int(sum(weight for side in _pieces(config).values() for _, weight in side))


def too_short(config: DataConfig, split: str, tokens: int) -> SourceError:
    """Return the error for a split that does not fill one sequence."""
    mend = "add text or lower data.sequence-length"
    if split == "validation":
        mend = "add text, raise data.validation-fraction or lower data.sequence-length"
    need = config.sequence_length + 1
    rule = f"its {split} split has {max(0, tokens)} tokens, but one sequence needs {need}; {mend}"
    return _error(config, rule)


def _error(config: DataConfig, rule: object) -> SourceError:
    said = masked(" ".join(str(rule).split()))
    names_field = said.startswith("data.")
    return SourceError(said if names_field else f"data.source={masked(config.source)!r}: {said}")


@contextmanager
def _explained(config: DataConfig) -> Iterator[None]:
    """Put the source's field in front of what went wrong in reading it, unless another is named."""
    try:
        yield
    except (ValueError, OSError, pa.ArrowException) as error:
        raise _error(config, error) from error


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _kind(config: DataConfig) -> Kind:
    return next(kind for kind in KINDS if config.source.startswith(kind.prefix))


def _pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    with _explained(config):
        return _kind(config).pieces(resolve(config))


def _checked(tokens: Any, tokenizer: Tokenizer) -> Document:
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= tokenizer.vocabulary):
        raise ValueError(
            f"token ids {tokens.min()}..{tokens.max()} are outside the vocabulary "
            f"0..{tokenizer.vocabulary - 1} of data.tokenizer={tokenizer.name!r}"
        )
    return np.asarray(tokens, np.int32)
