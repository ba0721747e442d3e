"""Labels that are made while they are trained on: gangs feed the trainer's workers, in its order.

Every worker has a pipeline of its own. Ray Data reads the tokens of the rows that the worker asks
for next and streams them through the gangs; nothing is written. Rows, order and number format are
those of stored labels, so the losses are equal.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from smt_ray.config import RunConfig, TrainConfig
from smt_ray.data.manifest import Manifest, Shards, open_manifest, schema_of
from smt_ray.data.order import LANES
from smt_ray.data.reader import SPREAD, Asked, Reader, Rows, chunk_rows
from smt_ray.data.rows import Batch, RowGroups, to_batch, to_columns, to_table
from smt_ray.data.shards import row_bytes, row_group_rows
from smt_ray.data.storage import Location
from smt_ray.labels.factory import label_fields, labelled
from smt_ray.labels.gang import AT_ONCE
from smt_ray.labels.labeller import Gangs

SEGMENT = 64
"""Batches of one pipeline; the next one starts while the last of them are encoded."""
ROOM = 12
"""Batches for whose size a pipeline has room: it holds about a third of them in wait."""

PAUSE_S = 0.05
"""Seconds between two looks of Ray Data at its tasks."""


@dataclass(frozen=True)
class StreamedLabels:
    """Labels from gangs that run beside the trainer."""

    config: RunConfig
    tokens: Location
    encoder: str
    """The teacher's fingerprint."""
    gangs: Gangs

    def rows(self, split: str, train: TrainConfig, rank: int, world: int) -> Rows:
        """Return a rank's columns of a split's batches."""
        directory = self.tokens / split
        manifest = open_manifest(directory, "tokens")
        fields, held = label_fields(self.config, self.encoder, manifest), split == "validation"
        reader = Reader(
            directory,
            manifest,
            global_batch=train.global_batch,
            seed=train.seed,
            rank=rank,
            world=world,
            chunk=SPREAD if held else chunk_rows(row_group_rows(row_bytes(schema_of(fields)))),
        )
        batch = self.config.runtime.gang_batch
        return LabelStream(reader, fields, self.gangs, batch, held=held)


class LabelStream(Rows):
    """A rank's columns of global batches, labelled when they are asked for."""

    def __init__(
        self, reader: Reader, fields: Manifest, gangs: Gangs, batch: int, *, held: bool = False
    ) -> None:
        """Start nothing yet.

        Args:
            reader: tokens, in the order of stored labels.
            fields: what a manifest of the labels would say.
            gangs: who encodes.
            batch: sequences that a gang encodes at once.
            held: keep the batches; for few that are asked for again and again.
        """
        self.reader, self.fields, self.gangs, self.size = reader, fields, gangs, batch
        self.columns = reader.columns
        self._held: dict[int, Batch] | None = {} if held else None

    def batch(self, step: int) -> Batch:
        """Return this rank's share of global batch `step`; the steps after it are made ahead."""
        if self._held is None:
            return super().batch(step)
        if step not in self._held:
            (self._held[step],) = self.follow([(step, self.columns)])
        return self._held[step]

    def follow(self, asked: Iterable[Asked]) -> Generator[Batch]:
        """Yield a batch of the rows of each item of `asked`, encoded before it is needed."""
        groups, following = self._groups(asked), None
        with ThreadPoolExecutor(1) as ahead:
            coming = self._start(groups)
            try:
                while coming:
                    tables = chain([coming.first], coming.rest)
                    for number, table in enumerate(tables, start=1):
                        if number == max(1, coming.batches - AT_ONCE):  # its last are under way
                            following = ahead.submit(self._start, groups)
                        yield from self._split(table)
                    coming, following = following.result() if following else None, None
            finally:  # Ray Data may not be ended by the garbage collection of a thread of its own
                for pipeline in (coming, following.result() if following else None):
                    if pipeline:
                        pipeline.rest.close()

    def _groups(self, asked: Iterable[Asked]) -> Iterator[dict[str, Any]]:
        """Yield what a gang encodes at once: the numbers of rows, and which item asked for each."""
        rows: list[int] = []
        items: list[int] = []
        for number, (steps, columns) in enumerate(asked):
            found = self.reader.order.at(steps, columns).tolist()
            rows += found
            items += [number] * len(found)
            if len(rows) >= self.size:
                yield {"rows": rows, "asked": items}
                rows, items = [], []
        if rows:
            yield {"rows": rows, "asked": items}

    def _start(self, groups: Iterator[dict[str, Any]]) -> "_Pipeline | None":
        """Start a pipeline on the next groups, and wait for its first table; None of no group."""
        segment = list(islice(groups, SEGMENT))
        if not segment:
            return None
        work = _Work(self.reader.shards.directory, self.reader.manifest, self.fields, self.gangs)
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = None  # a batch stays one block, however large
        context.execution_options.preserve_order = True
        context.custom_execution_callback_classes = [Paced]
        room = ROOM * self.size * row_bytes(schema_of(self.fields))
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=room
        )
        with DataContext.current(context):
            planned = ray.data.from_items(segment, override_num_blocks=len(segment))
            labelled = planned.map_batches(
                work,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=0,
                compute=TaskPoolStrategy(size=AT_ONCE),
            )
            tables = iter(
                labelled.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
            )
            return _Pipeline(len(segment), next(tables), tables)

    def _split(self, table: pa.Table) -> Iterator[Batch]:
        """Yield the batches that a table of label rows holds one after the other."""
        columns = to_columns(table)
        stops = np.flatnonzero(np.diff(columns.pop("asked"), append=-1)) + 1
        for start, stop in zip([0, *stops[:-1]], stops, strict=True):
            own = {name: column[start:stop].copy() for name, column in columns.items()}
            yield to_batch(own, self.fields)


class Paced(ExecutionCallback):
    """Lets Ray Data's thread rest, which runs beside the training in its process.

    It waits for outputs with `ray.wait`. That returns at once while one is there that the trainer
    has no room for yet: the thread would take a CPU.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Rest after each look at the tasks."""
        time.sleep(PAUSE_S)


class _Pipeline(NamedTuple):
    """A pipeline that runs: how many batches it makes, the first of them, and the rest."""

    batches: int
    first: pa.Table
    rest: Any


@dataclass(frozen=True)
class _Work:
    """What a task does: it reads the tokens of some rows, and asks a gang for their memories."""

    directory: Location
    manifest: Manifest
    fields: Manifest
    gangs: Gangs

    def __call__(self, block: pa.Table) -> pa.Table:
        """Label the rows of one block."""
        (asked,) = block.to_pylist()
        table = to_table(self._groups().take(np.array(asked["rows"])))
        made = labelled(self.gangs, table, schema_of(self.fields), self.fields)
        return made.append_column("asked", pa.array(asked["asked"]))

    def _groups(self) -> RowGroups:
        """Return what this process has read of the tokens: it may run other tasks later."""
        key = str(self.directory)
        if key not in _read:
            _read[key] = RowGroups(Shards(self.directory, self.manifest), kept=2 * LANES + 2)
        return _read[key]


_read: dict[str, RowGroups] = {}
