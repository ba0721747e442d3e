"""The stage `labels`: Ray Data streams token shards through encoder gangs into label shards.

Each task makes some label shards (`label_shards.py`): it reads their tokens, asks a gang for their
memories, and publishes each whole. What is missing is made, so each row is labelled once.
Legend: L sequence.
"""

import logging
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext, TaskPoolStrategy

from smt_ray.config import RunConfig, RuntimeConfig
from smt_ray.data.manifest import (
    MANIFEST,
    Manifest,
    Shards,
    check_shards,
    open_manifest,
    schema_of,
    write_manifest,
)
from smt_ray.data.rows import Columns
from smt_ray.data.shards import (
    WRITTEN,
    from_column,
    regrouped,
    row_bytes,
    row_group_rows,
    to_column,
    token_type,
)
from smt_ray.data.storage import PART, Location
from smt_ray.labels.gang import AT_ONCE, EncoderSpec
from smt_ray.labels.label_shards import LabelShard, enough, label_shards, listed
from smt_ray.labels.labeller import Gangs, started

SPLITS = ("train", "validation")
TASKS = 4096
"""Tasks of a split at most; what each costs the driver does not grow with the rows."""

logger = logging.getLogger(__name__)


def label_fields(config: RunConfig, encoder: str, tokens: Manifest) -> Manifest:
    """Return what the manifest of labels says, but for their shards.

    Args:
        config: the run.
        encoder: the teacher's fingerprint.
        tokens: the manifest of the tokens.
    """
    return {
        "kind": "labels",
        "split": tokens["split"],
        "sequence_length": config.data.sequence_length,
        "memory_tokens": config.model.memory_tokens,
        "width": config.model.width,
        "dtype": config.labels.dtype,
        "encoder": encoder,
        "vocabulary": tokens["vocabulary"],
        "targets": tokens["targets"],
    }


def encoder_spec(config: RunConfig, teacher: Location, vocabulary: int) -> EncoderSpec:
    """Return what the ranks of the gangs build: the encoder of the artifact `teacher`."""
    precision, dtype = config.optimizer.precision, config.labels.dtype
    return EncoderSpec(config.model, vocabulary, teacher, precision, dtype)


def write_labels(
    config: RunConfig,
    tokens: Location,
    teacher: Location,
    encoder: str,
    vocabulary: int,
    target: Location,
) -> dict[str, float]:
    """Write `train/` and `validation/` label shards and manifests; go on where a run stopped.

    Args:
        config: the run.
        tokens: the artifact with the token shards.
        teacher: the artifact with the encoder's weights.
        encoder: the teacher's fingerprint.
        vocabulary: V.
        target: where the labels go.

    Returns:
        `labels`: (sequence, timestep) pairs in both splits; `labels_per_s`: the rate at which this
        call labelled, start-up excluded (0 if all were there); `gang_rebuilds`: gangs built again
        after a lost rank or node; `seconds`.

    Raises:
        ValueError: naming the field at fault, if too few sequences are chosen for one global batch.
    """
    began = time.monotonic()
    expected = {"sequence_length": config.data.sequence_length, "vocabulary": vocabulary}
    splits = []
    for name in SPLITS:
        manifest = open_manifest(tokens / name, "tokens", **expected)
        check_shards(tokens / name, manifest)
        _check_enough(config, name, manifest)
        fields = label_fields(config, encoder, manifest)
        splits.append(Split(tokens / name, manifest, target / name, fields, config.labels.fraction))
    unfinished = [split for split in splits if not (split.directory / MANIFEST).exists()]
    left = {split.directory.name: split.missing() for split in unfinished}
    labels = config.data.sequence_length * sum(
        shard.count(split.fraction) for split in unfinished for shard in left[split.directory.name]
    )
    rate, rebuilds = 0.0, 0
    if labels:
        spec = encoder_spec(config, teacher, vocabulary)
        with started(config.name, spec, config.runtime, labels) as gangs:
            for split in unfinished:
                _label(config.runtime, gangs, split, left[split.directory.name])
            rate = ray.get(gangs.meter.rate.remote())
            rebuilds = sum(ray.get(gangs.meter.gangs.remote()).values())
    rows = sum(split.finish() for split in splits)
    return {
        "labels": config.data.sequence_length * rows,
        "labels_per_s": rate,
        "gang_rebuilds": rebuilds,
        "seconds": time.monotonic() - began,
    }


def _check_enough(config: RunConfig, split: str, manifest: Manifest) -> None:
    """Check that the sequences which get labels fill a global batch."""
    fraction = config.labels.fraction
    batch = max(config.transition.global_batch, config.dmt.global_batch)
    if not enough(manifest, fraction, batch):
        raise ValueError(
            f"labels.fraction={fraction}: leaves fewer {split} sequences than one global batch of "
            f"{batch}; give a larger fraction or a longer data.source"
        )


@dataclass(frozen=True)
class Split:
    """One split: its token shards, and where its label shards go."""

    tokens: Location
    manifest: Manifest
    directory: Location
    fields: Manifest
    """What the manifest of the labels says, but for their shards."""
    fraction: float

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of its label shards."""
        return schema_of(self.fields)

    @property
    def shards(self) -> Iterator[LabelShard]:
        """All its label shards in order, made or not."""
        return label_shards(self.manifest, row_bytes(self.schema), self.fraction)

    def missing(self) -> list[LabelShard]:
        """Return the label shards that are not there; remove what was left half written."""
        there = self.directory.sizes()
        for name in there:
            if name.endswith(PART):
                (self.directory / name).delete()
        return [shard for shard in self.shards if shard.name not in there]

    def finish(self) -> int:
        """Write the manifest, if it is not there; return the rows of all label shards.

        Raises:
            ValueError: naming a label shard that is not there any more.
        """
        if (self.directory / MANIFEST).exists():
            return int(open_manifest(self.directory, "labels")["sequences"])
        sizes = self.directory.sizes(".parquet")
        try:
            found = listed(self.manifest, row_bytes(self.schema), self.fraction, sizes)
        except KeyError as error:
            lost = self.directory / error.args[0]
            raise ValueError(f"{lost}: is gone; the same command makes it again") from error
        manifest = write_manifest(self.directory, self.fields, found)
        logger.info("%s: %d sequences labelled", self.directory.name, manifest["sequences"])
        return int(manifest["sequences"])


def _label(runtime: RuntimeConfig, gangs: Gangs, split: Split, missing: list[LabelShard]) -> None:
    """Make the missing label shards of a split, in tasks that each have some consecutive ones."""
    if not missing:
        return
    split.directory.make_dir()
    each = -(-len(missing) // TASKS)
    tasks = [missing[start : start + each] for start in range(0, len(missing), each)]
    work = _Work(gangs, split, runtime.gang_batch)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # without a terminal: 20 lines every 10 seconds
    with DataContext.current(context):
        rows = ray.data.from_items(
            [{"shards": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
        )
        # A task waits for its gang most of the time: it asks for no CPU.
        in_flight = TaskPoolStrategy(size=AT_ONCE * runtime.gangs)
        for _ in rows.map(work, num_cpus=0, compute=in_flight).iter_batches(batch_size=None):
            pass


@dataclass(frozen=True)
class _Work:
    """What a task does with its label shards."""

    gangs: Gangs
    split: Split
    batch: int
    """Sequences that a gang encodes at once."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make some label shards; return how many rows they have."""
        shards = pickle.loads(row["shards"])
        return {"rows": sum(self._make(shard) for shard in shards)}

    def _make(self, shard: LabelShard) -> int:
        split = self.split
        tokens = Shards(split.tokens, split.manifest)
        table = tokens.table(shard.source, shard.first, shard.rows)
        table = table.filter(pa.array(shard.chosen(split.fraction)))
        group = row_group_rows(row_bytes(split.schema))
        # Memories are as good as random: to compress them takes time and saves nothing.
        packing = {name: "NONE" if name == "memory" else "SNAPPY" for name in split.schema.names}
        with (
            (split.directory / shard.name).published() as file,
            file.output() as sink,
            pq.ParquetWriter(sink, split.schema, compression=packing, **WRITTEN) as writer,
        ):
            for rows in regrouped(self._labelled(table), group):
                writer.write_table(rows)
        return len(table)

    def _labelled(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield label rows of token rows, in batches of about equal size."""
        count = -(-len(table) // self.batch)
        for number in range(count):
            first, stop = number * len(table) // count, (number + 1) * len(table) // count
            yield labelled(self.gangs, table[first:stop], self.split.schema, self.split.fields)


def labelled(gangs: Gangs, table: pa.Table, schema: pa.Schema, fields: Manifest) -> pa.Table:
    """Return label rows of token rows.

    Args:
        gangs: who encodes.
        table: token rows.
        schema: columns of label rows.
        fields: what the manifest of the labels says.
    """
    tokens = from_column(table["tokens"], token_type(fields["vocabulary"]))
    memories: Columns = gangs.encode(np.ascontiguousarray(tokens[:, : fields["sequence_length"]]))
    made = {name: to_column(value) for name, value in memories.items()}
    columns = [made[name] if name in made else table[name] for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)
