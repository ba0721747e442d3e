"""The stage `labels`: Ray Data streams token shards through encoder gangs into label shards.

Exactly once: Ray Data notes the identities of written rows beside the shards, and an interrupted
run that goes on skips them. Legend: N rows, L sequence, K memory tokens, D width.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data.checkpoint import CheckpointConfig, CheckpointManager

from smt_ray.config import RunConfig, RuntimeConfig
from smt_ray.data.shards import (
    CHECKSUMS,
    MANIFEST,
    VERIFIED,
    Manifest,
    label_schema,
    open_parquet,
    open_shards,
    row_group_rows,
    whole,
)
from smt_ray.data.storage import Location
from smt_ray.labels.gang import EncoderSpec
from smt_ray.labels.labeller import Factory, factory
from smt_ray.objectives.objective import hashed

SPLITS = ("train", "validation")
SHARD_BYTES = 32 << 20
"""Size of a label shard, and what an interruption can lose of a gang's work; at least one batch."""
IN_FLIGHT = 2
"""Batches that a gang works on or has waiting, so that it never waits for the next one."""

logger = logging.getLogger(__name__)
Ids = NDArray[np.int64]


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
        call labelled the training split, start-up excluded (0 if it was done before);
        `gang_rebuilds`: gangs built again after a lost rank or node; `seconds`.

    Raises:
        ValueError: naming the field at fault, if too few sequences are chosen for one global batch.
    """
    began = time.monotonic()
    model, length = config.model, config.data.sequence_length
    spec = EncoderSpec(model, vocabulary, teacher, config.optimizer.precision, config.labels.dtype)
    fields: Manifest = {
        "kind": "labels",
        "sequence_length": length,
        "memory_tokens": model.memory_tokens,
        "width": model.width,
        "dtype": spec.dtype,
        "encoder": encoder,
        "vocabulary": vocabulary,
    }
    splits = []
    for name in SPLITS:
        expected = {"sequence_length": length, "vocabulary": vocabulary}
        manifest = open_shards(tokens / name, "tokens", **expected)
        fields["targets"] = manifest.get("targets", False)
        shards = [tokens / name / shard for shard in manifest["shards"]]
        ids = _chosen(config, name, _ids(shards))
        splits.append(_Split(shards, target / name, target / "progress" / name, ids))
    unfinished = [split for split in splits if not (split.directory / MANIFEST).exists()]
    rate, rebuilds = _label(config, spec, fields, unfinished)
    return {
        "labels": length * sum(len(split.ids) for split in splits),
        "labels_per_s": rate,
        "gang_rebuilds": rebuilds,
        "seconds": time.monotonic() - began,
    }


@dataclass(frozen=True)
class _Split:
    """One split: token shards, where labels and Ray Data's notes go, the sequences to label."""

    tokens: list[Location]
    directory: Location
    progress: Location
    ids: Ids


def keep(ids: Ids, fraction: float) -> NDArray[np.bool_]:
    """Return which sequences are among the labelled `fraction`: a hash of the identity decides.

    Compared as integers: next to a float a hash is rounded, and a high one counts as 2^62.
    """
    return (hashed(torch.tensor(ids)) < int(fraction * 2.0**62)).numpy()


def _label(
    config: RunConfig, spec: EncoderSpec, fields: Manifest, splits: list[_Split]
) -> tuple[float, int]:
    """Write label shards and manifests of the splits.

    Returns:
        Labels per second in the training split, and gangs built again.
    """
    runtime, length = config.runtime, config.data.sequence_length
    shape = (spec.model.memory_tokens, spec.model.width, spec.dtype)
    schema = label_schema(length, *shape, targets=fields["targets"])
    left = [
        (split, written)
        for split in splits
        if len(written := _written(runtime, split)) < len(split.ids)
    ]
    missing = length * sum(len(split.ids) - len(written) for split, written in left)
    rate, rebuilds = 0.0, 0
    if left:
        with factory(config.name, spec, runtime, schema, missing) as labelled:
            for split, written in left:
                _stream(config, labelled, split, written)
                if split.directory.name == "train":
                    rate = ray.get(labelled.meter.rate.remote())
            rebuilds = sum(ray.get(labelled.meter.gangs.remote()).values())
    for split in splits:
        _write_manifest(split.directory, fields, split.ids)
    return rate, rebuilds


def _stream(config: RunConfig, labelled: Factory, split: _Split, written: Ids) -> None:
    """Stream the token shards of a split through the gangs into label shards."""
    runtime, schema = config.runtime, labelled.schema
    lists = sum(field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type))
    row_bytes = 4 * lists + schema.field("memory").type.byte_width
    batches = max(1, SHARD_BYTES // (row_bytes * runtime.gang_batch))
    chosen = partial(_choose, fraction=config.labels.fraction, written=ray.put(written))
    paths = [shard.path for shard in split.tokens]
    with DataContext.current(_context(runtime, split.progress)):
        rows = ray.data.read_parquet(
            paths, filesystem=split.tokens[0].filesystem, fragment_scan_options=VERIFIED
        )
        rows = rows.select_columns(schema.names[:-1])
        rows = rows.map_batches(chosen, batch_format="pyarrow", batch_size=None)
        rows.repartition(target_num_rows_per_block=batches * runtime.gang_batch).map_batches(
            labelled,
            batch_size=runtime.gang_batch,
            batch_format="pyarrow",
            num_cpus=0,
            compute=TaskPoolStrategy(size=IN_FLIGHT * runtime.gangs),
        ).write_parquet(
            split.directory.path,
            filesystem=split.directory.filesystem,
            schema=schema,
            row_group_size=row_group_rows(row_bytes),
            **CHECKSUMS,
            ray_remote_args={"num_cpus": 0},
        )


def _context(runtime: RuntimeConfig, progress: Location) -> DataContext:
    """Return a context for one split's pipeline: what is done, and how many CPUs may read.

    Tasks that read and cut get one CPU more than there are gangs: a gang is far slower than its
    reader, and each task is a process. Writers ask for none, so that the end of the stream is never
    starved by its beginning.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # without a terminal: 20 lines every 10 seconds
    context.use_datasource_v2 = False  # it starts ten actors to read footers
    context.checkpoint_config = CheckpointConfig(
        id_column="sequence_id",
        checkpoint_path=progress.path,
        override_filesystem=progress.filesystem,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=_Notes,
    )
    ranks = runtime.gangs * runtime.rank_count
    free = ray.cluster_resources().get("CPU", 0) - ranks * runtime.threads
    readers = max(1.0, min(free, 1.0 + runtime.gangs))
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=readers)
    return context


class _Notes(CheckpointManager):
    """Ray Data's notes of what is written, without its filter: `_choose` skips written rows.

    The filter is an actor whose arguments are objects: it cannot be restarted once they are lost,
    asks for 1 GiB, and takes a process.
    """

    def load_checkpoint(
        self, data_file_dir: str | None = None, data_file_filesystem: Any = None
    ) -> tuple[None, int]:
        """Remove shards that an interruption left half written."""
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0


def _written(runtime: RuntimeConfig, split: _Split) -> Ids:
    """Return the identities that an earlier try has labelled, sorted; remove what it left half."""
    directory, context = split.directory, _context(runtime, split.progress)
    if directory.exists() and context.checkpoint_config:
        notes = _Notes(checkpoint_config=context.checkpoint_config, data_context=context)
        notes.load_checkpoint(directory.path, directory.filesystem)
    return np.sort(np.concatenate([split.ids[:0], *_ids(directory.files(".parquet"))]))


def _choose(batch: pa.Table, fraction: float, written: Any) -> pa.Table:
    """Return the rows of a batch that are among the fraction, and not among those written."""
    ids = batch["sequence_id"].to_numpy()
    chosen = keep(ids, fraction)
    if len(done := ray.get(written)):
        nearest = done[np.minimum(np.searchsorted(done, ids), len(done) - 1)]
        chosen &= nearest != ids
    return batch.filter(pa.array(chosen))


def _ids(shards: list[Location]) -> list[Ids]:
    """Return the identities in each shard."""

    def read(shard: Location) -> Ids:
        with whole(shard), shard.open() as file:
            return open_parquet(file).read(columns=["sequence_id"])["sequence_id"].to_numpy()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(read, shards))


def _chosen(config: RunConfig, split: str, shards: list[Ids]) -> Ids:
    """Return the identities that get labels, in order; at least one global batch of them."""
    fraction = config.labels.fraction
    ids = np.sort(np.concatenate(shards))
    ids = ids[keep(ids, fraction)]
    batch = max(config.transition.global_batch, config.dmt.global_batch)
    if len(ids) < batch:
        raise ValueError(
            f"labels.fraction={fraction}: leaves {len(ids)} {split} sequences, fewer than one "
            f"global batch of {batch}; give a larger fraction or a longer data.source"
        )
    return ids


def _write_manifest(directory: Location, fields: Manifest, ids: Ids) -> None:
    """Check that each sequence has its label once, and write the manifest.

    Raises:
        ValueError: if a sequence is missing or there twice.
    """
    shards = directory.files(".parquet")
    found = _ids(shards)
    if not np.array_equal(np.sort(np.concatenate([ids[:0], *found])), ids):
        raise ValueError(
            f"{directory}: {sum(map(len, found))} labels for {len(ids)} sequences; "
            "delete its directory and run the stage again"
        )
    counts = {shard.name: len(rows) for shard, rows in zip(shards, found, strict=True)}
    split = {"split": directory.name, "sequences": len(ids), "shards": counts}
    (directory / MANIFEST).write_json(fields | split)
    logger.info("%s: %d sequences labelled", directory.name, len(ids))
