"""Where documents come from: the standard library, local or remote files, Hugging Face data sets.

`plan` turns a `DataConfig` into units of work of bounded size, the same for the same configuration
and files; `read` streams the documents of one unit, on whatever node it runs.
"""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smt_ray.config import DataConfig
from smt_ray.data.files import file_pieces, read_files
from smt_ray.data.formats import Document
from smt_ray.data.hub import hub_pieces, read_hub
from smt_ray.data.pieces import Piece, groups
from smt_ray.data.tokenizers import Tokenizer, load_tokenizer

SPLITS = ("train", "validation")


class SourceError(ValueError):
    """What is wrong with the source, in one line that starts with `data.source=`."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task reads: its index over all splits, its split, and its pieces in order."""

    index: int
    split: str
    pieces: tuple[Piece, ...]


def resolve(config: DataConfig) -> DataConfig:
    """Return the configuration with a local source made absolute, for any process to read."""
    head, name = ("hf:", config.source[3:]) if _is_hub(config) else ("", config.source)
    place = Path(name).expanduser().absolute()
    if name == "stdlib" or "://" in name or (head and not place.exists()):
        return config
    return replace(config, source=f"{head}{place}")


def plan(config: DataConfig) -> dict[str, list[Unit]]:
    """Return the units of work of each split.

    Raises:
        SourceError: if nothing matches the source, or its files are empty or of an unknown kind.
    """
    with _explained(config):
        place = resolve(config)
        pieces = hub_pieces(place) if _is_hub(place) else file_pieces(place)
    numbers = itertools.count()
    return {
        split: [Unit(next(numbers), split, group) for group in groups(pieces[split])]
        for split in SPLITS
    }


def read(unit: Unit, config: DataConfig, tokenizer: Tokenizer) -> Iterator[Document]:
    """Yield the documents of one unit: text, bytes or int32 token ids.

    Raises:
        SourceError: if a file is unreadable, or token ids are outside the vocabulary.
    """
    with _explained(config):
        place = resolve(config)
        if _is_hub(place):
            documents = read_hub(unit.pieces, place, validation=unit.split == "validation")
        else:
            documents = read_files(unit.pieces, place)
        for document in documents:
            if isinstance(document, np.ndarray):
                yield _checked(document, tokenizer)
            elif document:
                yield document


def check(config: DataConfig) -> None:
    """Check, without a cluster, all that is known before the whole source is read.

    Raises:
        ValueError: naming the field at fault, in one line (a `SourceError` but for the tokenizer).
    """
    tokenizer = load_tokenizer(config.tokenizer)
    for split, units in plan(config).items():
        pieces = [piece for unit in units for piece in unit.pieces]
        # A token covers a byte or more; the rows of a compressed file and shards tell nothing.
        if not _is_hub(config) and not any(p.path.endswith(".parquet") for p in pieces):
            most = sum(p.stop - p.start + 1 for p in pieces) - 1
            if most <= config.sequence_length:
                raise too_short(config, split, most)
        if not units or next(read(units[0], config, tokenizer), None) is None:
            raise too_short(config, split, 0)


def identity(config: DataConfig) -> str:
    """Return a digest of which pieces the source has and of their lengths, not of their content."""
    pieces = [
        (split, piece.path if config.source == "stdlib" else piece.path.rsplit("/", 1)[-1],
         piece.start, piece.stop)
        for split, units in plan(config).items() for unit in units for piece in unit.pieces
    ]  # fmt: skip
    return hashlib.sha256(repr(pieces).encode()).hexdigest()[:16]


def size(config: DataConfig) -> int:
    """Return about how many bytes the source has; 0 for `hf:` sources, whose size is unknown."""
    if _is_hub(config):
        return 0
    return int(sum(bytes_ for side in file_pieces(resolve(config)).values() for _, bytes_ in side))


def too_short(config: DataConfig, split: str, tokens: int) -> SourceError:
    """Return the error for a split that does not fill one sequence."""
    mend = "add text or lower data.sequence-length"
    if split == "validation":
        mend = "add text, raise data.validation-fraction or lower data.sequence-length"
    need = config.sequence_length + 1
    rule = f"its {split} split has {max(0, tokens)} tokens, but one sequence needs {need}; {mend}"
    return _error(config, rule)


def _error(config: DataConfig, rule: object) -> SourceError:
    return SourceError(f"data.source={config.source!r}: {' '.join(str(rule).split())}")


@contextmanager
def _explained(config: DataConfig) -> Iterator[None]:
    """Put the source's field in front of what went wrong in reading it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise _error(config, error) from error


def _is_hub(config: DataConfig) -> bool:
    return config.source.startswith("hf:")


def _checked(tokens: Any, tokenizer: Tokenizer) -> Document:
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= tokenizer.vocabulary):
        raise ValueError(
            f"token ids {tokens.min()}..{tokens.max()} are outside the vocabulary "
            f"0..{tokenizer.vocabulary - 1} of data.tokenizer={tokenizer.name!r}"
        )
    return np.asarray(tokens, np.int32)
