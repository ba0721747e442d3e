"""The kinds of files that documents are read from: how each is measured, cut and read.

A place inside a file is counted in bytes (text, .jsonl), rows (.parquet) or tokens (.npy). Errors
are `ValueError`s that name the file, and the line where there is one; the caller adds the
configuration's field.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smt_ray.data import pieces
from smt_ray.data.storage import Location
from smt_ray.data.unicode import last_character, unmarked

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
        """Search backwards for the end of a line, for a cheap place at most a unit of work far."""
        floor = max(0, near - pieces.UNIT_BYTES) if cheap else 0
        with file.open() as handle:
            return self._cut(handle, near, floor)

    def _cut(self, handle: BinaryIO, near: int, floor: int) -> int:
        stop = near
        while stop > floor:
            start = max(0, stop - BLOCK)
            handle.seek(start)
            block = handle.read(stop - start + 1)
            line = block.rfind(b"\n", 0, stop - start) + 1
            if line > 0:
                return start + line
            if not self.lines_only:
                return start + last_character(block)
            stop = start
        return 0

    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the range's documents; a long range is read in parts.

        Raises:
            ValueError: if the file is no UTF-8 text.
        """
        with file.open() as handle:
            while start < stop:
                near = start + pieces.UNIT_BYTES
                end = self._cut(handle, near, start) if near < stop else stop
                end = end if end > start else stop  # one line that is longer than a part
                handle.seek(start)
                content = handle.read(end - start)
                if start == 0:
                    content = unmarked(content, file)
                yield from self.documents(content, field, partial(_line_of, file, start))
                start = end

    def documents(
        self, content: bytes, field: str, place: Callable[[int], str]
    ) -> Iterator[Document]:
        """Yield the documents of whole lines; `place` names the file and line of the n-th."""
        yield content


class JsonLines(Text):
    """One JSON object a line, its text in one field; null is left out."""

    lines_only = True

    def documents(
        self, content: bytes, field: str, place: Callable[[int], str]
    ) -> Iterator[Document]:
        """Yield the field of every line that is not blank.

        Raises:
            ValueError: if a line is no JSON object, or its field is missing or no text.
        """
        for number, line in enumerate(io.BytesIO(content)):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                at = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                reason = getattr(error, "msg", error)
                raise ValueError(f"{place(number)}{at}: not JSON ({reason})") from error
            columns = row if isinstance(row, dict) else {}
            text = columns.get(field)
            if isinstance(text, str):
                yield text
            elif text is not None or field not in columns:
                raise no_text(place(number), field, columns)


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
            kind = kinds.get(field)
            if kind == pa.null():  # a part of a data set in which no row has a text
                return
            if kind is None or not (
                _is_text(kind) or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))
            ):
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


def no_text(place: object, field: str, columns: Mapping[str, object]) -> ValueError:
    """Return the error for a missing column of text.

    It lists the columns that are there; `columns` holds the value or type of each.
    """
    there = ", ".join(sorted(columns)) or "none"
    held = columns.get(field)
    kind = held if isinstance(held, pa.DataType) else type(held).__name__
    but = f" (it holds {kind})" if field in columns else ""
    return ValueError(f"{place}: no text in data.text-field={field!r}{but}; its columns: {there}")


def _line_of(file: Location, start: int, line: int) -> str:
    """Name the n-th line (from 0) of what begins at `start`; the lines before it are counted."""
    with file.open() as handle:
        while start > 0:
            block = handle.read(min(start, BLOCK))
            start -= len(block)
            line += block.count(b"\n")
    return f"{file}, line {line + 1}"


def _parquet(file: Location, handle: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(handle)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: truncated or not Parquet ({error})") from error


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
