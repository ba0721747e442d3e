"""Sequences in memory: what the pipeline would write as shards, drawn in this process.

Shapes: N sequences, B batch, L inputs in a sequence.
"""

from collections.abc import Generator, Iterable
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from smt_ray.config import DataConfig
from smt_ray.data import sources
from smt_ray.data.curriculum import Drawn
from smt_ray.data.reader import Asked, Rows, Stream
from smt_ray.data.rows import Batch
from smt_ray.data.shards import from_column, target_type, token_type
from smt_ray.data.source_plan import plan_source
from smt_ray.objectives.objective import hashed

HELD_OUT_TOKENS = 65_536
HELD_OUT = 1024
"""Sequences of a task that are scored."""


class Source(Protocol):
    """Where sequences come from."""

    data: DataConfig
    vocabulary: int

    def training(self, batch: int) -> Stream:
        """Return a stream of training batches of `batch` sequences."""

    def held_out(self) -> Batch:
        """Return the sequences that are scored."""


class TaskSource(Source):
    """Fresh sequences of a task."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        """Draw training sequences from `seed`."""
        self.data, self.seed = data, seed
        self.vocabulary = sources.load_tokenizer_of(data).vocabulary

    def training(self, batch: int) -> Stream:
        """Return fresh training batches."""
        return Drawn(self.data, self.data.sequence_length, batch, self.seed)

    def held_out(self, split: str = "validation", times: int = 1) -> Batch:
        """Return sequences of L * `times` inputs that no training sees."""
        seed, length = -1 - ["validation", "test"].index(split), self.data.sequence_length * times
        return Drawn(self.data, length, HELD_OUT // times, seed, training=False).batch(0)


class Corpus(Source):
    """The sequences of any source, text as windows of L + 1 tokens."""

    def __init__(self, data: DataConfig, seed: int = 0) -> None:
        """Read `data.source`; `seed` draws the training batches."""
        self.data, self.seed, self.plan = data, seed, plan_source(data)
        self.vocabulary = self.plan.tokenizer.vocabulary

    @cached_property
    def train(self) -> "Sequences":
        """All training sequences."""
        return self._sequences("train")

    def training(self, batch: int) -> Stream:
        """Return batches of sequences, each of which comes once in a pass."""
        return Shuffled(self.train, batch, self.seed)

    def held_out(self) -> Batch:
        """Return validation sequences of at most `HELD_OUT_TOKENS` inputs, drawn once and for all.

        They are all different where there are fewer of them than that.
        """
        found, rows = self._sequences("validation"), HELD_OUT_TOKENS // self.data.sequence_length
        if len(found) <= rows:
            return found.batch(torch.arange(len(found)))
        return found.batch(hashed(-1, 0, torch.arange(rows)) % len(found))

    def _sequences(self, split: str) -> "Sequences":
        tokenizer, length = self.plan.tokenizer, self.data.sequence_length
        tables = [
            table
            for unit in self.plan.split(split)
            for table in sources.packer(unit, self.plan.config, tokenizer).tables(
                sources.read(unit, self.plan.config, tokenizer), 1024
            )
        ]

        def column(name: str, kind: np.dtype[Any]) -> NDArray[np.int32]:
            return np.concatenate([from_column(table[name], kind) for table in tables]).astype("i4")

        tokens = column("tokens", token_type(self.vocabulary))
        if "targets" in tables[0].column_names:
            return Sequences(tokens, column("targets", target_type(self.vocabulary)))
        return Sequences(tokens[:, :length], tokens[:, 1:])


class Sequences:
    """Inputs and targets, (N, L) each; those of a text overlap in memory."""

    def __init__(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Keep them."""
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        """Return N."""
        return len(self.inputs)

    def batch(self, rows: torch.Tensor) -> Batch:
        """Return the sequences of the given rows."""
        at = rows.numpy()
        return {
            "sequence_id": rows,
            "inputs": torch.from_numpy(self.inputs[at].astype(np.int64)),
            "targets": torch.from_numpy(self.targets[at].astype(np.int64)),
        }


class Shuffled(Stream):
    """Batches of all rows in turn, in an order that is drawn anew for each pass over them."""

    def __init__(self, sequences: Sequences, rows: int, seed: int) -> None:
        """Draw `rows` of the sequences a step."""
        self.sequences, self.rows, self.seed = sequences, rows, seed
        self.order = lru_cache(maxsize=2)(self._order)

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, which may begin in one pass and end in the next."""
        rows = range(step * self.rows, (step + 1) * self.rows)
        turns = [divmod(row, len(self.sequences)) for row in rows]
        return self.sequences.batch(torch.stack([self.order(number)[row] for number, row in turns]))

    def _order(self, number: int) -> torch.Tensor:
        """Return the rows in the order of pass `number`."""
        generator = torch.Generator().manual_seed(int(hashed(self.seed, number)))
        return torch.randperm(len(self.sequences), generator=generator)


class Stored(Stream):
    """Batches in memory, again and again."""

    def __init__(self, batches: list[Batch]) -> None:
        """Keep the batches."""
        self.batches = batches

    def batch(self, step: int) -> Batch:
        """Return batch `step`, from the first again after the last."""
        return self.batches[step % len(self.batches)]


class RowsOf(Rows):
    """The rows of a stream whose batches cost nothing, in any order."""

    def __init__(self, stream: Stream) -> None:
        """Take rows of `stream`."""
        self.stream = stream
        self.columns = np.arange(len(stream.batch(0)["inputs"]))

    def follow(self, asked: Iterable[Asked]) -> Generator[Batch]:
        """Yield a batch of the rows of each item of `asked`."""
        for steps, columns in asked:
            batches: dict[int, Batch] = {}
            rows = []
            pairs = zip(np.broadcast_to(steps, columns.shape).tolist(), columns, strict=True)
            for step, column in pairs:
                if step not in batches:
                    batches[step] = self.stream.batch(step)
                place = int(column - self.columns[0])
                rows.append({name: value[place] for name, value in batches[step].items()})
            yield {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
