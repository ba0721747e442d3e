"""Compressed text: .txt and .jsonl files as .gz or .zst, read as one stream.

A place inside such a file is counted in compressed bytes. Only its ends are places to read from; a
place between them stands for the same share of the unpacked bytes.
"""

import io
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from smt_ray.data import pieces
from smt_ray.data.formats import (
    BLOCK,
    FORMATS,
    Document,
    Format,
    JsonLines,
    Text,
)
from smt_ray.data.storage import Location
from smt_ray.data.unicode import last_character, unmarked

CODECS = {".gz": "gzip", ".zst": "zstd"}


class Packed(Format):
    """A text format under a codec; it costs a pass over the whole file to read a part."""

    def __init__(self, inner: Text, codec: str) -> None:
        """Unpack with `codec`, then read as `inner` does."""
        self.inner, self.codec = inner, codec

    def measure(self, file: Location) -> tuple[int, float]:
        """Return the compressed size, and how many times that its first block unpacks to."""
        size = file.size()
        with file.open() as raw:
            head = raw.read(BLOCK)
        found = 0
        try:
            with pa.CompressedInputStream(io.BytesIO(head), self.codec) as stream:
                while block := stream.read(BLOCK):
                    found += len(block)
        except OSError:  # the block ends before the stream does
            pass
        return size, max(1.0, found / max(1, len(head)))

    def cut(self, file: Location, near: int, cheap: bool) -> int:
        """Cut anywhere, but nowhere cheaply."""
        return 0 if cheap else near

    def read(self, file: Location, start: int, stop: int, field: str) -> Iterator[Document]:
        """Yield the documents of the lines that begin between two places, a unit at a time.

        Raises:
            ValueError: if the file is no UTF-8 text, or a line is bad.
            OSError: if it is truncated or no such archive.
        """
        size = file.size()
        whole = (start, stop) == (0, size)
        length = 0 if whole else sum(map(len, self._blocks(file)))
        first, last = start * length // size, stop * length // size
        place = line = 0
        for chunk in self._chunks(file):
            begin = 0 if whole else _next_line(chunk, first - place)
            end = len(chunk) if whole else _next_line(chunk, last - place)
            if place == 0:
                begin = max(begin, len(chunk) - len(unmarked(chunk, file)))
            before = line + chunk.count(b"\n", 0, begin)
            if part := chunk[begin:end]:
                yield from self.inner.documents(part, field, partial(_line_of, file, before))
            place += len(chunk)
            line += chunk.count(b"\n")

    def _blocks(self, file: Location) -> Iterator[bytes]:
        with file.open() as raw, pa.CompressedInputStream(raw, self.codec) as stream:
            while block := stream.read(pieces.UNIT_BYTES):
                yield block

    def _chunks(self, file: Location) -> Iterator[bytes]:
        """Yield the unpacked bytes in parts of about a unit of work, each of whole lines."""
        held: list[bytes] = []
        for block in self._blocks(file):
            end = block.rfind(b"\n") + 1
            if not end and not self.inner.lines_only:
                end = last_character(block)
            if end:
                yield b"".join([*held, block[:end]])
                held = []
            held.append(block[end:])
        if rest := b"".join(held):
            yield rest


def _line_of(file: Location, before: int, line: int) -> str:
    """Name the n-th line (from 0) after `before` others."""
    return f"{file}, line {before + line + 1}"


def _next_line(chunk: bytes, offset: int) -> int:
    """Return where the first line begins at or after `offset`; the end if none does."""
    if offset <= 0:
        return 0
    found = chunk.find(b"\n", offset - 1)
    return found + 1 if found >= 0 else len(chunk)


def format_of(path: str) -> Format | None:
    """Return the format of a file by the end of its name; None if it is of no known kind."""
    return next((kind for end, kind in KINDS.items() if path.lower().endswith(end)), None)


KINDS: dict[str, Format] = {
    **FORMATS,
    **{
        f"{end}{packing}": Packed(inner, codec)
        for end, inner in ((".txt", Text()), (".jsonl", JsonLines()))
        for packing, codec in CODECS.items()
    },
}
