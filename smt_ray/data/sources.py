"""Where documents come from: the standard library, local or remote files, Hugging Face data sets.

`plan` turns a `DataConfig` into units of work of bounded size, the same for the same configuration
and files; `read` streams the documents of one unit, on whatever node it runs.
"""

import hashlib
import itertools
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from smt_ray.config import DataConfig
from smt_ray.data.formats import FORMATS, Document, Format, format_of, no_text
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import Tokenizer, load_tokenizer

UNIT_BYTES = 16 << 20
SPLITS = ("train", "validation")
INSTALLED = {"site-packages", "dist-packages"}  # inside the standard library, but not of it


class SourceError(ValueError):
    """What is wrong with the source, in one line that starts with `data.source=`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of one file, in the count of its format; or of the shards of a Hugging Face split.

    `path` is relative to the interpreter's library (`stdlib`), absolute in its file system (files),
    or the name of the data set's split (`hf:`).
    """

    path: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task reads: its index over all splits, its split, and its pieces in order."""

    index: int
    split: str
    pieces: tuple[Piece, ...]


Weighted = tuple[Piece, float]  # a piece and its size in source bytes


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
        pieces = _hub_pieces(place) if _is_hub(place) else _file_pieces(place)
    numbers = itertools.count()
    return {
        split: [Unit(next(numbers), split, group) for group in _groups(pieces[split])]
        for split in SPLITS
    }


def read(unit: Unit, config: DataConfig, tokenizer: Tokenizer) -> Iterator[Document]:
    """Yield the documents of one unit: text, bytes or int32 token ids.

    Raises:
        SourceError: if a file is unreadable, or token ids are outside the vocabulary.
    """
    with _explained(config):
        place = resolve(config)
        documents = _read_hub(unit, place) if _is_hub(place) else _read_files(unit, place)
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
    return int(sum(bytes_ for side in _file_pieces(resolve(config)).values() for _, bytes_ in side))


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


def _uniform(config: DataConfig, key: str) -> float:
    """Return a number in [0, 1) that depends on the seed and on `key` alone."""
    digest = hashlib.blake2b(f"{config.seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _groups(pieces: Iterable[Weighted]) -> Iterator[tuple[Piece, ...]]:
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


def _checked(tokens: Any, tokenizer: Tokenizer) -> Document:
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= tokenizer.vocabulary):
        raise ValueError(
            f"token ids {tokens.min()}..{tokens.max()} are outside the vocabulary "
            f"0..{tokenizer.vocabulary - 1} of data.tokenizer={tokenizer.name!r}"
        )
    return np.asarray(tokens, np.int32)


def _library() -> Location:
    return Location.of(sysconfig.get_paths()["stdlib"])


def _file(config: DataConfig, path: str) -> Location:
    if config.source == "stdlib":
        return _library() / path
    return Location(_base(config)[0].filesystem, path)


def _base(config: DataConfig) -> tuple[Location, str]:
    """Return the place that the source starts from, and the rest from the first wildcard on."""
    parts = config.source.split("/")
    remote = "://" in config.source
    wild = set("*[" if remote else "*?[")
    if not remote and Path(config.source).exists():
        wild = set()
    first = next((n for n, part in enumerate(parts) if wild & set(part)), len(parts))
    return Location.of("/".join(parts[:first]) or "/"), "/".join(parts[first:])


def _list_files(config: DataConfig) -> list[str]:
    """Return the source's files, sorted: relative to the library, or absolute."""
    if config.source == "stdlib":
        root = _library()
        names = (file.path[len(root.path) + 1 :] for file in root.files(".py", recursive=True))
        return [name for name in names if INSTALLED.isdisjoint(name.split("/"))]
    base, pattern = _base(config)
    if pattern:
        from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]

        found = ArrowFSWrapper(base.filesystem).glob(
            f"{base.path.rstrip('/')}/{pattern}", detail=True
        )
        return sorted(path for path, info in found.items() if info["type"] == "file")
    if base.is_dir():
        return [file.path for file in base.files(recursive=True) if format_of(file.path)]
    return [base.path] if base.exists() else []


def _format(config: DataConfig, path: str) -> Format:
    return FORMATS[".txt"] if config.source == "stdlib" else FORMATS[PurePosixPath(path).suffix]


def _file_pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    """Split by file if there are several, otherwise hold out the end of the one file."""
    paths = _list_files(config)
    kinds = ", ".join(FORMATS)
    if not paths:
        raise ValueError(f"no {kinds} file is there; give such files, `stdlib` or hf:NAME")
    if config.source != "stdlib":
        unknown = next((path for path in paths if not format_of(path)), None)
        if unknown:
            raise ValueError(f"{unknown}: unknown kind of file; give one of {kinds}")
    with ThreadPoolExecutor(16) as pool:  # one request a file on remote storage
        sizes = pool.map(lambda path: _format(config, path).measure(_file(config, path)), paths)
        measured = [(path, *size) for path, size in zip(paths, sizes, strict=True) if size[0]]
    if not measured:
        raise ValueError(f"all of its {len(paths)} files are empty")
    split: dict[str, list[Weighted]] = {name: [] for name in SPLITS}
    if len(measured) == 1:
        path, length, each = measured[0]
        near = min(length - 1, round(length * (1 - config.validation_fraction)))
        middle = _format(config, path).cut(_file(config, path), near, cheap=False)
        split["train"] += _cut(config, path, 0, middle, each)
        split["validation"] += _cut(config, path, middle, length, each)
    else:
        held = _held_out(config, [path for path, _, _ in measured])
        for path, length, each in measured:
            split["validation" if path in held else "train"] += _cut(config, path, 0, length, each)
    return split


def _held_out(config: DataConfig, paths: list[str]) -> set[str]:
    """Choose the validation files by a hash of their names; at least one is on each side."""
    skip = 0 if config.source == "stdlib" else len(_base(config)[0].path)
    order = sorted((_uniform(config, path[skip:]), path) for path in paths)
    count = sum(draw < config.validation_fraction for draw, _ in order)
    return {path for _, path in order[: min(max(1, count), len(paths) - 1)]}


def _cut(config: DataConfig, path: str, start: int, stop: int, each: float) -> Iterator[Weighted]:
    """Cut a range of a file into pieces of about `UNIT_BYTES`; one place holds `each` bytes."""
    step = max(1, int(UNIT_BYTES / each))
    file = _file(config, path)
    kind = _format(config, path)
    cuts = {kind.cut(file, near, cheap=True) for near in range(start + step, stop, step)}
    places = sorted({start, stop} | {place for place in cuts if start < place < stop})
    for first, last in itertools.pairwise(places):
        yield Piece(path, first, last), (last - first) * each


def _read_files(unit: Unit, config: DataConfig) -> Iterator[Document]:
    for piece in unit.pieces:
        file = _file(config, piece.path)
        reader = _format(config, piece.path)
        yield from reader.read(file, piece.start, piece.stop, config.text_field)


def _hub(config: DataConfig) -> dict[str, Any]:
    """Open a Hugging Face data set (a hub name or a directory) as streams by split."""
    import datasets

    name = config.source.removeprefix("hf:")
    if any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(name)
    else:
        found = datasets.load_dataset(name, streaming=True)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise ValueError(f"it has no split `train`, only {', '.join(splits)}")
    for split, data in splits.items():
        if isinstance(data, datasets.Dataset):
            shards = max(1, min(len(data), data.data.nbytes // UNIT_BYTES))
            splits[split] = data.to_iterable_dataset(num_shards=shards)
    return splits


def _hub_pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    """Take the data set's validation split, otherwise hold out documents of `train` by a hash."""
    splits = _hub(config)
    names = ("train", "validation" if "validation" in splits else "train")
    return {
        split: [(Piece(name, n, n + 1), UNIT_BYTES) for n in range(splits[name].num_shards)]
        for split, name in zip(SPLITS, names, strict=True)
    }


def _read_hub(unit: Unit, config: DataConfig) -> Iterator[Document]:
    splits = _hub(config)
    for piece in unit.pieces:
        data = splits[piece.path]
        for shard in range(piece.start, piece.stop):
            part = data.shard(num_shards=data.num_shards, index=shard)
            for number, row in enumerate(part):
                text = row.get(config.text_field)
                if config.text_field not in row or not isinstance(text, str | bytes | None):
                    raise no_text(config.source, config.text_field, row)
                draw = _uniform(config, f"{shard}/{number}")
                held = draw < config.validation_fraction
                if text and ("validation" in splits or held == (unit.split == "validation")):
                    yield text
