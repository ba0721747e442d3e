"""Files as a source: finding them, splitting them into train and validation, cutting big ones."""

import glob
import itertools
import logging
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pyarrow as pa

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.content import versions
from smt_ray.data.formats import FORMATS, Document, Format
from smt_ray.data.packed import format_of
from smt_ray.data.pieces import Piece, Weighted, draw
from smt_ray.data.storage import Location

INSTALLED = {"site-packages", "dist-packages"}  # inside the standard library, but not of it
LEFTOVERS = {"__MACOSX", "_temporary", "_delta_log"}  # what archives, Spark and Delta leave

NAMED = 5  # files passed over that are named

logger = logging.getLogger(__name__)


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
            rule = f"give one of {kinds}, or .txt and .jsonl as .gz or .zst"
            raise ValueError(f"{unknown}: unknown kind of file; {rule}")
    with ThreadPoolExecutor(16) as pool:  # one request a file on remote storage
        sizes = pool.map(lambda path: _format(config, path).measure(_file(config, path)), paths)
        measured = [(path, *size) for path, size in zip(paths, sizes, strict=True) if size[0]]
    if not measured:
        raise ValueError(f"all of its {len(paths)} files are empty")
    split: dict[str, list[Weighted]] = {"train": [], "validation": []}
    unit = pieces.unit_bytes(sum(length * each for _, length, each in measured))
    if len(measured) == 1:
        path, length, each = measured[0]
        near = min(length - 1, round(length * (1 - config.validation_fraction)))
        middle = _format(config, path).cut(_file(config, path), near, cheap=False)
        split["train"] += _cut(config, path, 0, middle, each, unit)
        split["validation"] += _cut(config, path, middle, length, each, unit)
    else:
        held = _held_out(config, [path for path, _, _ in measured])
        for path, length, each in measured:
            side = split["validation" if path in held else "train"]
            side += _cut(config, path, 0, length, each, unit)
    return split


def read_files(parts: tuple[Piece, ...], config: DataConfig) -> Iterator[Document]:
    """Yield the documents of the pieces in order.

    Raises:
        ValueError: if a file is not what its name says, or its column of text is missing.
    """
    for piece in parts:
        file = _file(config, piece.path)
        reader = _format(config, piece.path)
        try:
            yield from reader.read(file, piece.start, piece.stop, config.text_field)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from error


def file_versions(config: DataConfig, paths: Iterable[str]) -> dict[str, str]:
    """Return what tells the versions of each of the source's files apart, by its path."""
    found = sorted(set(paths))
    return dict(zip(found, versions([_file(config, path) for path in found]), strict=True))


@cache
def _library() -> Location:
    return Location.of(sysconfig.get_paths()["stdlib"])


def _file(config: DataConfig, path: str) -> Location:
    if config.source == "stdlib":
        return _library() / path
    return Location(_base(config)[0].filesystem, path)


def _format(config: DataConfig, path: str) -> Format:
    kind = FORMATS[".txt"] if config.source == "stdlib" else format_of(path)
    assert kind, f"{path} was planned without a format"
    return kind


def _base(config: DataConfig) -> tuple[Location, str]:
    """Return the place that the source starts from, and the rest from the first wildcard on."""
    parts = config.source.split("/")
    remote = "://" in config.source
    wild = set("*[" if remote else "*?[")

    def is_wild(n: int) -> bool:
        there = not remote and Path("/".join(parts[: n + 1])).exists()
        return bool(wild & set(parts[n])) and not there

    first = next((n for n in range(len(parts)) if is_wild(n)), len(parts))
    return Location.of("/".join(parts[:first]) or "/"), "/".join(parts[first:])


def _find(config: DataConfig) -> list[str]:
    """Return the source's files, sorted: relative to the library, or absolute."""
    if config.source == "stdlib":
        root = _library()
        inside = (file.path[len(root.path) + 1 :] for file in root.files(".py", recursive=True))
        return [name for name in inside if INSTALLED.isdisjoint(name.split("/"))]
    base, pattern = _base(config)
    if not base.is_dir():
        return [base.path] if not pattern and base.exists() else []
    names = listed(base, pattern)
    found = [path for path in names if pattern or format_of(path)]
    if others := [path[len(base.path) + 1 :] for path in names if path not in {*found}]:
        some = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        logger.info("%s: files of other kinds passed over: %d (%s)", base, len(others), some)
    strange = next((path for path in found if path != path.encode(errors="replace").decode()), None)
    if strange:
        raise ValueError(f"{strange!r}: the name is not UTF-8; rename it")
    return found


def listed(base: Location, pattern: str) -> list[str]:
    """Return the files below a directory that match a pattern (all if it is empty), sorted.

    Names that begin with a dot are left out unless a part of the pattern begins with one, too.
    """
    root = base.path.rstrip("/")
    if base.is_local:
        found = _walk(root, pattern)
    elif pattern:
        from fsspec.implementations.arrow import ArrowFSWrapper

        matches = ArrowFSWrapper(base.filesystem).glob(
            f"{glob.escape(root)}/{pattern}", detail=True
        )
        found = (path for path, info in matches.items() if info["type"] == "file")
    else:
        found = (file.path for file in base.files(recursive=True))
    return sorted(path for path in found if _is_data(path[len(root) + 1 :], pattern))


def _walk(root: str, pattern: str) -> Iterator[str]:
    """Yield a local directory's files, each directory once: links to directories may form rings."""
    from fsspec.utils import glob_translate

    matches = re.compile(glob_translate(pattern or "**")).match
    depth = float("inf") if "**" in pattern or not pattern else pattern.count("/")
    seen: set[str] = set()
    for place, folders, names in os.walk(root or "/", followlinks=True, onerror=_fail):
        inside = place[len(root) :].strip("/")
        real = os.path.realpath(place)
        new = real not in seen
        seen.add(real)
        deeper = new and len(Path(inside).parts) < depth
        folders[:] = sorted(folder for folder in folders if deeper and _is_data(folder, pattern))
        for name in names if new else ():
            path = f"{inside}/{name}" if inside else name
            if matches(path) and os.path.isfile(f"{root}/{path}"):
                yield f"{root}/{path}"


def _fail(error: OSError) -> None:
    raise error


def _is_data(name: str, pattern: str) -> bool:
    """Return whether no part of a relative name is hidden or left over, unless it is asked for."""
    asked = [part for part in pattern.split("/") if part.startswith((".", "_"))]
    return not any(
        (part.startswith(".") or part in LEFTOVERS)
        and not any(fnmatchcase(part, other) for other in asked)
        for part in name.split("/")
    )


def _held_out(config: DataConfig, paths: list[str]) -> set[str]:
    """Choose the validation files by a hash of their names; at least one is on each side."""
    skip = 0 if config.source == "stdlib" else len(_base(config)[0].path)
    order = sorted((draw(path[skip:]), path) for path in paths)
    count = sum(chance < config.validation_fraction for chance, _ in order)
    return {path for _, path in order[: min(max(1, count), len(paths) - 1)]}


def _cut(
    config: DataConfig, path: str, start: int, stop: int, each: float, unit: int
) -> Iterator[Weighted]:
    """Cut a range of a file into pieces of about a unit; one place of it holds `each` bytes."""
    step = max(1, int(unit / each))
    file = _file(config, path)
    kind = _format(config, path)
    cuts = {kind.cut(file, near, cheap=True) for near in range(start + step, stop, step)}
    places = sorted({start, stop} | {place for place in cuts if start < place < stop})
    for first, last in itertools.pairwise(places):
        yield Piece(path, first, last), (last - first) * each
