"""What a source yields becomes token tables: documents as windows, examples as they are.

Row r of unit i has the identity i * 2^32 + r. Shapes: N rows, L inputs in a sequence.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smt_ray.data.formats import Document
from smt_ray.data.shards import Integers, target_type, to_column, token_schema, token_type
from smt_ray.data.tokenizers import Tokenizer
from smt_ray.objectives.objective import IGNORED


class Examples(NamedTuple):
    """N sequences of L inputs with a target at each (-100 = none), both as (N, L) token ids."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


class Packer(ABC):
    """Makes the rows of one unit of work.

    `documents` and `tokens` count what was read, `bytes` what the targets of the rows cover.
    `targets` is how many targets of its own a row has at most; 0: they are the next tokens.
    """

    def __init__(self, length: int, unit: int, schema: pa.Schema) -> None:
        """Make rows of `schema`, of `length` (L) inputs; `unit` is the unit of work's index."""
        self.documents = 0
        self.tokens = 0
        self.bytes = 0
        self.targets = 0
        self._length = length
        self._next_id = unit << 32
        self.schema = schema

    @abstractmethod
    def tables(self, content: Iterable[Any], rows: int) -> Iterator[pa.Table]:
        """Yield token tables of at most `rows` rows."""

    def _ids(self, count: int) -> pa.Array:
        ids = np.arange(self._next_id, self._next_id + count)
        self._next_id += count
        return pa.array(ids)


class WindowPacker(Packer):
    """Cuts one stream of documents into windows of L + 1 tokens that overlap by one.

    Separators between documents are tokens; a last part that does not fill a window is left out.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, unit: int) -> None:
        """Cut for sequences of `length` (L) inputs; `unit` is the unit of work's index."""
        super().__init__(length, unit, token_schema(length, tokenizer.vocabulary))
        self._tokenizer, self._type = tokenizer, token_type(tokenizer.vocabulary)

    def tables(self, content: Iterable[Document], rows: int) -> Iterator[pa.Table]:
        """Yield token tables of `rows` rows (the last may be shorter)."""
        separator = np.full(1, self._tokenizer.separator, self._type)
        step = rows * self._length
        parts: list[Integers] = []
        held = 0
        for document in content:
            ids = document if isinstance(document, np.ndarray) else self._tokenizer.encode(document)
            ids = ids.astype(self._type, copy=False)
            new = [separator, ids] if self.documents else [ids]
            parts += new
            held += sum(map(len, new))
            self.documents += 1
            if held > step:
                stream = np.concatenate(parts)
                whole = (held - 1) // step * step
                for start in range(0, whole, step):
                    yield self._table(stream[start : start + step + 1])
                parts = [stream[whole:].copy()]
                held -= whole
                self.tokens += whole
        self.tokens += held
        if held > self._length:
            stream = np.concatenate(parts)
            yield self._table(stream[: (held - 1) // self._length * self._length + 1])

    def _table(self, stream: Integers) -> pa.Table:
        targets = stream[1:].reshape(-1, self._length)
        count = len(targets)
        windows = np.empty((count, self._length + 1), self._type)
        windows[:, 0], windows[:, 1:] = stream[: -1 : self._length], targets
        covered = self._tokenizer.covered(targets)
        self.bytes += int(covered.sum())
        columns = [self._ids(count), to_column(windows), pa.array(covered.astype(np.int32))]
        return pa.Table.from_arrays(columns, schema=self.schema)


class ExamplePacker(Packer):
    """Makes a row of each example; an image covers a byte a pixel, a task covers none."""

    def __init__(self, vocabulary: int, length: int, unit: int, *, covers: bool) -> None:
        """Take examples of `length` (L) inputs; `covers` says whether the rows have `bytes`."""
        schema = token_schema(length, vocabulary, targets=True, covers=covers)
        super().__init__(length, unit, schema)
        self.targets = 1
        self._types = token_type(vocabulary), target_type(vocabulary)
        self._covers = covers

    def tables(self, content: Iterable[Examples], rows: int) -> Iterator[pa.Table]:
        """Yield token tables of at most `rows` rows."""
        for inputs, targets in content:
            self.documents += len(inputs)
            self.tokens += inputs.size
            self.targets = max(self.targets, int((targets != IGNORED).sum(1).max(initial=0)))
            for start in range(0, len(inputs), rows):
                part = slice(start, start + rows)
                pair = zip((inputs[part], targets[part]), self._types, strict=True)
                columns = [to_column(rows.astype(kind)) for rows, kind in pair]
                count = len(inputs[part])
                if self._covers:
                    self.bytes += count * self._length
                    columns.append(pa.array(np.full(count, self._length, np.int32)))
                yield pa.Table.from_arrays([self._ids(count), *columns], schema=self.schema)
