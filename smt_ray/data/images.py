"""Images as a source: each one a sequence of its pixels, row by row.

An image of n pixels p becomes the inputs [start, p_0 .. p_{n-2}] and the targets p_0 .. p_{n-1}; a
pixel's id is its level, and the start symbol comes after the levels. Images are scikit-learn's
digits or those of one IDX file (the format of MNIST), plain or gzip.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.content import versions
from smt_ray.data.packer import Examples
from smt_ray.data.pieces import Piece, Weighted
from smt_ray.data.storage import Location

DIGITS = "pixels:digits"
BLOCK = 1024  # images made into sequences at once
HEADER = struct.Struct(">IIII")
MAGIC = 0x00000803  # unsigned bytes in three axes
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Images:
    """What a source of images holds: their number, shape and levels; `file` unless the digits'."""

    count: int
    height: int
    width: int
    levels: int
    file: Location | None = None

    @property
    def pixels(self) -> int:
        """n: pixels of one image."""
        return self.height * self.width

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the images of a range as (stop - start, n) levels.

        Raises:
            ValueError: if the file ends before them, or its compression is damaged.
        """
        if self.file is None:
            return _digits()[start:stop].reshape(stop - start, self.pixels)
        size = (stop - start) * self.pixels
        with _content(self.file) as handle:
            handle.seek(HEADER.size + start * self.pixels)
            content = handle.read(size)
        if len(content) < size:
            raise ValueError(f"{self.file}: truncated; its header promises {self.count} images")
        return np.frombuffer(content, np.uint8).reshape(stop - start, self.pixels)


def images_of(config: DataConfig) -> Images:
    """Return what the source holds, from its header.

    Raises:
        ValueError: if it is missing, foreign or truncated, or has too few images or pixels.
    """
    if config.source == DIGITS:
        count, height, width = _digits().shape
        return Images(count, height, width, 17)
    file = Location.of(config.source.removeprefix("pixels:"))
    if not file.exists() or file.is_dir():
        raise ValueError(f"{file}: no such file; give `digits` or the path of an IDX file")
    with _content(file) as handle:
        header = handle.read(HEADER.size)
        packed = isinstance(handle, gzip.GzipFile)
    magic, count, height, width = HEADER.unpack(header.ljust(HEADER.size, b"\xff"))
    if magic != MAGIC or len(header) < HEADER.size:
        raise ValueError(f"{file}: no IDX file of images (unsigned bytes in three axes)")
    images = Images(count, height, width, 256, file)
    if images.count < 2 or images.pixels < 2:
        shape = f"{images.count} images of {images.height} x {images.width} pixels"
        raise ValueError(f"{file}: has {shape}; both splits need an image, and it two pixels")
    if not packed and file.size() < HEADER.size + images.count * images.pixels:
        raise ValueError(f"{file}: truncated; its header promises {images.count} images")
    return images


def pixel_versions(config: DataConfig, paths: Iterable[str]) -> dict[str, str]:
    """Return what tells the versions of the file of images apart; the digits do not change."""
    file = images_of(config).file
    return dict.fromkeys(paths, versions([file])[0] if file else "")


def pixel_vocabulary(config: DataConfig) -> int:
    """Return V: the levels and the start symbol."""
    return images_of(config).levels + 1


def check_pixels(config: DataConfig) -> None:
    """Check that a sequence is an image, and that the file is whole (a compressed one is read).

    Raises:
        ValueError: naming the field at fault.
    """
    images = images_of(config)
    images.read(images.count - 1, images.count)
    if config.sequence_length != images.pixels:
        raise ValueError(
            f"data.sequence-length={config.sequence_length}: an image of {config.source} has "
            f"{images.height} x {images.width} pixels; give {images.pixels}"
        )


def pixel_pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    """Return each split's pieces: all ranges of images, of which a split takes its own."""
    images = images_of(config)
    step = max(1, pieces.UNIT_BYTES // images.pixels)
    share = {"validation": _held_out(config, images).mean()}
    share["train"] = 1 - share["validation"]
    path = "digits" if images.file is None else images.file.path
    return {
        split: [
            (Piece(path, start, stop), float((stop - start) * images.pixels * share[split]))
            for start in range(0, images.count, step)
            for stop in [min(start + step, images.count)]
        ]
        for split in ("train", "validation")
    }


def read_pixels(
    parts: tuple[Piece, ...], config: DataConfig, validation: bool
) -> Iterator[Examples]:
    """Yield the images of the pieces that are on the asked side of the split."""
    images = images_of(config)
    side = _held_out(config, images) == validation
    for piece in parts:
        chosen = images.read(piece.start, piece.stop)[side[piece.start : piece.stop]]
        for start in range(0, len(chosen), BLOCK):
            targets = chosen[start : start + BLOCK].astype(np.int32)
            inputs = np.roll(targets, 1, axis=1)
            inputs[:, 0] = images.levels
            yield Examples(inputs, targets)


def _held_out(config: DataConfig, images: Images) -> NDArray[np.bool_]:
    """Return which images are validation: a draw, at least one on each side."""
    count = max(1, round(images.count * config.validation_fraction))
    held = np.zeros(images.count, np.bool_)
    held[np.random.default_rng(0).permutation(images.count)[:count]] = True
    return held


@cache
def _digits() -> NDArray[np.uint8]:
    """Return the digits' levels, 0..16, as (images, height, width)."""
    from sklearn.datasets import load_digits

    return load_digits().images.astype(np.uint8)


@contextmanager
def _content(file: Location) -> Iterator[BinaryIO]:
    """Open a file for its bytes, decompressed if they begin like gzip."""
    with file.open() as raw:
        packed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{file}: truncated or damaged gzip") from error
