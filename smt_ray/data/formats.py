"""The kinds of files that documents are read from: how each is measured, cut and read.

A place inside a file is counted in bytes (text, .jsonl), rows (.parquet) or tokens (.npy). Errors
are `ValueError`s that name the file; the caller adds the configuration's field.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smt_ray.data.storage import Location

BLOCK = 1 << 16  # bytes searched at once for the start of a line
BATCH_ROWS = 1024

Document = str | bytes | NDArray[Any]


class Format(ABC):
    """One kind of file."""

    @abstractmethod
    def measure(self, file: Location) -> tuple[int, float]:
        """Return the file's length in its own count, and the source bytes of one of that count."""

    @abstractmethod
    def cut(self, file: Location, near: int, cheap: bool) -> int:
        """Return the last place <= `near` where the file may be cut (0 if there is none).

        `cheap` asks for a place from which reading costs no more than what is read.
        """

    @abstractmethod
    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the documents between two places; `field` names the column of text."""


class Text(Format):
    """Plain text: the range is one document; cut where a line starts, or else a character."""

    lines_only = False

    def measure(self, file: Location) -> tuple[int, float]:
        """Return the size in bytes."""
        return file.size(), 1.0

    def cut(self, file: Location, near: int, cheap: bool) -> int:
        """Search backwards for the end of a line."""
        with file.open() as handle:
            stop = near
            while stop > 0:
                start = max(0, stop - BLOCK)
                handle.seek(start)
                block = handle.read(stop - start + 1)
                line = block.rfind(b"\n", 0, stop - start) + 1
                if line > 0:
                    return start + line
                if not self.lines_only:
                    head = block.rstrip(bytes(range(0x80, 0xC0)))  # inner bytes of a character
                    return start + max(0, len(head) - 1)
                stop = start
        return 0

    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the range."""
        yield _bytes(file, start, stop)


class JsonLines(Text):
    """One JSON object a line, its text in one field."""

    lines_only = True

    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the field of every line that is not blank.

        Raises:
            ValueError: if a line is no JSON object, or its field is missing or no text.
        """
        for line in io.BytesIO(_bytes(file, start, stop)):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}: a line is not JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise no_text(file, field, row if isinstance(row, dict) else ())
            yield row[field]


class Parquet(Format):
    """One document a row, in a column of strings or bytes; null rows are left out."""

    def measure(self, file: Location) -> tuple[int, float]:
        """Return the number of rows and the mean uncompressed bytes of one."""
        with file.open() as handle:
            footer = _parquet(file, handle).metadata
        groups = (footer.row_group(n).total_byte_size for n in range(footer.num_row_groups))
        return footer.num_rows, sum(groups) / max(1, footer.num_rows)

    def cut(self, file: Location, near: int, cheap: bool) -> int:
        """Return the start of a row group if that is asked for, otherwise any row."""
        if not cheap:
            return near
        with file.open() as handle:
            starts = _group_starts(_parquet(file, handle))
        return max(place for place in starts if place <= near)

    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the column's values in small batches.

        Raises:
            ValueError: if the file is not Parquet, or the column is missing or of another type.
        """
        with file.open() as handle:
            table = _parquet(file, handle)
            kinds = {column.name: column.type for column in table.schema_arrow}
            kind = kinds.get(field, pa.null())
            if not (_is_text(kind) or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))):
                raise no_text(file, field, kinds)
            starts = _group_starts(table)
            groups = [
                n for n in range(len(starts) - 1) if starts[n] < stop and starts[n + 1] > start
            ]
            row = starts[groups[0]] if groups else stop
            for batch in table.iter_batches(BATCH_ROWS, row_groups=groups, columns=[field]):
                first, last = max(0, start - row), max(0, min(len(batch), stop - row))
                yield from (text for text in batch[0][first:last].to_pylist() if text is not None)
                row += len(batch)


class Numpy(Format):
    """Token ids: a one-dimensional array of integers, read by ranges."""

    def measure(self, file: Location) -> tuple[int, float]:
        """Return the number of tokens and the bytes of one."""
        with file.open() as handle:
            length, kind = _npy_header(file, handle)
        return length, kind.itemsize

    def cut(self, file: Location, near: int, cheap: bool) -> int:
        """Cut anywhere."""
        return near

    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the range as one array."""
        with file.open() as handle:
            _, kind = _npy_header(file, handle)
            handle.seek(start * kind.itemsize, io.SEEK_CUR)
            yield np.frombuffer(handle.read((stop - start) * kind.itemsize), kind)


FORMATS: dict[str, Format] = {
    ".txt": Text(),
    ".jsonl": JsonLines(),
    ".parquet": Parquet(),
    ".npy": Numpy(),
}


def format_of(path: str) -> Format | None:
    """Return the format of a file by the end of its name; None if it is of no known kind."""
    return FORMATS.get(PurePosixPath(path).suffix)


def no_text(place: object, field: str, columns: Any) -> ValueError:
    """Return the error for a missing column of text; it lists the columns that are there."""
    there = ", ".join(sorted(columns)) or "none"
    return ValueError(f"{place}: no text in data.text-field={field!r}; its columns: {there}")


def _bytes(file: Location, start: int, stop: int) -> bytes:
    with file.open() as handle:
        handle.seek(start)
        return handle.read(stop - start)


def _parquet(file: Location, handle: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(handle)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: truncated or not Parquet") from error


def _group_starts(table: pq.ParquetFile) -> list[int]:
    """Return the first row of every row group, and the number of rows."""
    footer = table.metadata
    rows = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
    return [0, *np.cumsum(rows, dtype=int).tolist()]


def _is_text(kind: pa.DataType) -> bool:
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
    return kind in texts


def _npy_header(file: Location, handle: BinaryIO) -> tuple[int, np.dtype[Any]]:
    """Read the header of a .npy file, up to its first number."""
    try:
        version = np.lib.format.read_magic(handle)
        readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, kind = readers[version[0]](handle)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a .npy file of version 1 or 2") from error
    if len(shape) != 1 or kind.kind not in "iu":
        raise ValueError(f"{file}: shape {shape}, {kind}; it must be one axis of integers")
    if file.size() < handle.tell() + shape[0] * kind.itemsize:
        raise ValueError(f"{file}: truncated; its header promises {shape[0]} tokens")
    return shape[0], kind
