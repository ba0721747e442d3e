"""Files as a source: finding them, splitting them into train and validation, cutting big ones."""

import itertools
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.formats import FORMATS, Document, Format, format_of
from smt_ray.data.pieces import Piece, Weighted, draw
from smt_ray.data.storage import Location

INSTALLED = {"site-packages", "dist-packages"}  # inside the standard library, but not of it


def file_pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    """Return each split's pieces: by file if there are several, else the end of one is held out.

    Raises:
        ValueError: if no file matches, or the files are empty, unreadable or of an unknown kind.
    """
    paths = _find(config)
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
    split: dict[str, list[Weighted]] = {"train": [], "validation": []}
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


def read_files(parts: tuple[Piece, ...], config: DataConfig) -> Iterator[Document]:
    """Yield the documents of the pieces in order.

    Raises:
        ValueError: if a file is not what its name says, or its column of text is missing.
    """
    for piece in parts:
        file = _file(config, piece.path)
        reader = _format(config, piece.path)
        yield from reader.read(file, piece.start, piece.stop, config.text_field)


def _library() -> Location:
    return Location.of(sysconfig.get_paths()["stdlib"])


def _file(config: DataConfig, path: str) -> Location:
    if config.source == "stdlib":
        return _library() / path
    return Location(_base(config)[0].filesystem, path)


def _format(config: DataConfig, path: str) -> Format:
    return FORMATS[".txt"] if config.source == "stdlib" else FORMATS[PurePosixPath(path).suffix]


def _base(config: DataConfig) -> tuple[Location, str]:
    """Return the place that the source starts from, and the rest from the first wildcard on."""
    parts = config.source.split("/")
    remote = "://" in config.source
    wild = set("*[" if remote else "*?[")
    if not remote and Path(config.source).exists():
        wild = set()
    first = next((n for n, part in enumerate(parts) if wild & set(part)), len(parts))
    return Location.of("/".join(parts[:first]) or "/"), "/".join(parts[first:])


def _find(config: DataConfig) -> list[str]:
    """Return the source's files, sorted: relative to the library, or absolute."""
    if config.source == "stdlib":
        root = _library()
        names = (file.path[len(root.path) + 1 :] for file in root.files(".py", recursive=True))
        return [name for name in names if INSTALLED.isdisjoint(name.split("/"))]
    base, pattern = _base(config)
    if pattern:
        from fsspec.implementations.arrow import ArrowFSWrapper

        system = ArrowFSWrapper(base.filesystem)
        found = system.glob(f"{base.path.rstrip('/')}/{pattern}", detail=True)
        return sorted(path for path, info in found.items() if info["type"] == "file")
    if base.is_dir():
        return [file.path for file in base.files(recursive=True) if format_of(file.path)]
    return [base.path] if base.exists() else []


def _held_out(config: DataConfig, paths: list[str]) -> set[str]:
    """Choose the validation files by a hash of their names; at least one is on each side."""
    skip = 0 if config.source == "stdlib" else len(_base(config)[0].path)
    order = sorted((draw(config.seed, path[skip:]), path) for path in paths)
    count = sum(chance < config.validation_fraction for chance, _ in order)
    return {path for _, path in order[: min(max(1, count), len(paths) - 1)]}


def _cut(config: DataConfig, path: str, start: int, stop: int, each: float) -> Iterator[Weighted]:
    """Cut a range of a file into pieces of about a unit; one place of it holds `each` bytes."""
    step = max(1, int(pieces.UNIT_BYTES / each))
    file = _file(config, path)
    kind = _format(config, path)
    cuts = {kind.cut(file, near, cheap=True) for near in range(start + step, stop, step)}
    places = sorted({start, stop} | {place for place in cuts if start < place < stop})
    for first, last in itertools.pairwise(places):
        yield Piece(path, first, last), (last - first) * each
