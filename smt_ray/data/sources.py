"""Where sequences come from: text, synthetic tasks, images.

A source is cut into units of work of bounded size, the same for the same configuration and files
(`source_plan.py`). `read` streams what one unit holds, on whatever node it runs, and `packer` makes
rows of it. Text is documents, cut into windows; tasks and images are examples with targets of their
own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from smt_ray.config import DataConfig, masked
from smt_ray.data.files import file_pieces, file_versions, read_files
from smt_ray.data.formats import Document
from smt_ray.data.hub import hub_pieces, hub_versions, read_hub
from smt_ray.data.images import (
    DIGITS,
    Images,
    check_pixels,
    images_of,
    pixel_pieces,
    pixel_versions,
    pixel_vocabulary,
    read_pixels,
)
from smt_ray.data.packer import ExamplePacker, Examples, Packer, WindowPacker
from smt_ray.data.pieces import Piece, Weighted
from smt_ray.data.synthetic import check_task, read_task, task_pieces, task_vocabulary
from smt_ray.data.tokenizers import NumberTokenizer, Tokenizer, load_tokenizer

SPLITS = ("train", "validation")


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
    whether that is validation; `versions` tells versions of what is behind each piece's path apart.
    """

    prefix: str
    pieces: Callable[[DataConfig], dict[str, list[Weighted]]]
    read: Callable[[tuple[Piece, ...], DataConfig, bool], Iterator[Any]]
    versions: Callable[[DataConfig, Iterable[str]], dict[str, str]]


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
        "pixels:", pixel_pieces, read_pixels, pixel_versions, pixel_vocabulary, check_pixels
    ),
    Kind("hf:", hub_pieces, read_hub, hub_versions),
    Kind("", file_pieces, lambda parts, config, _: read_files(parts, config), file_versions),
)  # fmt: skip


def resolve(config: DataConfig) -> DataConfig:
    """Return the configuration with a local source made absolute, for any process to read."""
    prefix = kind_of(config).prefix
    name = config.source.removeprefix(prefix)
    if prefix == "task:" or config.source in {"stdlib", DIGITS} or "://" in name:
        return config
    location = Path(name).expanduser().absolute()
    if prefix == "hf:" and not location.exists():
        return config
    return replace(config, source=f"{prefix}{location}")


def load_tokenizer_of(config: DataConfig) -> Tokenizer:
    """Return the source's tokenizer: the configured one for text, else its own numbers.

    Raises:
        ValueError: naming the field at fault, if the configured one is not for this source.
    """
    kind = kind_of(config)
    given = load_tokenizer(config.tokenizer)
    if not isinstance(kind, ExampleKind):
        if isinstance(given, NumberTokenizer):
            raise _error(config, f"is text, but {config.tokenizer} knows numbers only")
        return given
    with explained(config):
        own = NumberTokenizer(kind.vocabulary(resolve(config)))
    if config.tokenizer != "bytes" and (given.name, given.vocabulary) != (own.name, own.vocabulary):
        raise ValueError(
            f"data.tokenizer={config.tokenizer!r}: has {given.vocabulary} {given.name}, but "
            f"{config.source} has {own.vocabulary} {own.name} of its own; leave this out"
        )
    return own


def read(
    unit: Unit, config: DataConfig, tokenizer: Tokenizer
) -> Iterator[Document] | Iterator[Examples]:
    """Yield the documents of one unit (text, bytes or int32 token ids), or its examples.

    Raises:
        SourceError: if a file is unreadable, or token ids are outside the vocabulary.
    """
    with explained(config):
        for content in kind_of(config).read(
            unit.pieces, resolve(config), unit.split == "validation"
        ):
            if isinstance(content, np.ndarray):
                yield _checked(content, tokenizer)
            elif content:
                yield content


def packer(unit: Unit, config: DataConfig, tokenizer: Tokenizer) -> Packer:
    """Return what makes rows of that which `read` yields of a unit."""
    length = config.sequence_length
    if isinstance(kind_of(config), ExampleKind):
        covers = config.kind == "pixels"
        return ExamplePacker(tokenizer.vocabulary, length, unit.index, covers=covers)
    return WindowPacker(tokenizer, length, unit.index)


def images_in(config: DataConfig) -> Images:
    """Return what a `pixels:` source holds: number, height and width of its images.

    Raises:
        SourceError: if the source is unreadable.
    """
    with explained(config):
        return images_of(resolve(config))


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
def explained(config: DataConfig) -> Iterator[None]:
    """Put the source's field in front of what went wrong in reading it, unless another is named."""
    try:
        yield
    except (ValueError, OSError, pa.ArrowException) as error:
        raise _error(config, error) from error


def kind_of(config: DataConfig) -> Kind:
    """Return the kind of a source."""
    return next(kind for kind in KINDS if config.source.startswith(kind.prefix))


def _checked(tokens: Any, tokenizer: Tokenizer) -> Document:
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= tokenizer.vocabulary):
        raise ValueError(
            f"token ids {tokens.min()}..{tokens.max()} are outside the vocabulary "
            f"0..{tokenizer.vocabulary - 1} of data.tokenizer={tokenizer.name!r}"
        )
    return np.asarray(tokens, np.int32)
