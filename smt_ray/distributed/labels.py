"""The stage `labels`: Ray Data streams token shards through encoder gangs into label shards.

Exactly once: Ray Data notes the identities of written rows beside the shards, and an interrupted
run that goes on skips them. Legend: N rows, L sequence, K memory tokens, D width.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data.checkpoint import CheckpointConfig

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
from smt_ray.distributed.gang import EncoderSpec
from smt_ray.distributed.labeller import factory
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
    spec = EncoderSpec(model, vocabulary, teacher, config.teacher.precision, config.labels.dtype)
    fields: Manifest = {
        "kind": "labels",
        "sequence_length": length,
        "memory_tokens": model.memory_tokens,
        "width": model.width,
        "dtype": spec.dtype,
        "encoder": encoder,
        "vocabulary": vocabulary,
    }
    shards, ids = {}, {}
    for split in SPLITS:
        source = tokens / split
        expected = {"sequence_length": length, "vocabulary": vocabulary}
        manifest = open_shards(source, "tokens", **expected)
        fields["targets"] = manifest.get("targets", False)
        shards[split] = [source / name for name in manifest["shards"]]
        ids[split] = _chosen(config, split, _ids(shards[split]))
    rates, rebuilds = dict.fromkeys(SPLITS, 0.0), 0
    for split in SPLITS:
        directory = target / split
        if not (directory / MANIFEST).exists():
            progress = target / "progress" / split
            schema = label_schema(
                length, model.memory_tokens, model.width, spec.dtype, targets=fields["targets"]
            )
            missing = length * (len(ids[split]) - _written(directory))
            pipeline = (shards[split], directory, progress, missing)
            rates[split], lost = _label(config, spec, schema, *pipeline)
            rebuilds += lost
            _write_manifest(directory, fields, ids[split])
    return {
        "labels": length * sum(map(len, ids.values())),
        "labels_per_s": rates["train"],
        "gang_rebuilds": rebuilds,
        "seconds": time.monotonic() - began,
    }


def keep(ids: Ids, fraction: float) -> NDArray[np.bool_]:
    """Return which sequences are among the labelled `fraction`: a hash of the identity decides.

    Compared as integers: next to a float a hash is rounded, and a high one counts as 2^62.
    """
    return (hashed(torch.tensor(ids)) < int(fraction * 2.0**62)).numpy()


def _label(
    config: RunConfig,
    spec: EncoderSpec,
    schema: pa.Schema,
    tokens: list[Location],
    directory: Location,
    progress: Location,
    missing: int,
) -> tuple[float, int]:
    """Write the label shards of one split, of which so many labels are missing.

    Returns:
        Labels per second, and gangs built again.
    """
    runtime = config.runtime
    lists = sum(field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type))
    row_bytes = 4 * lists + schema.field("memory").type.byte_width
    batches = max(1, SHARD_BYTES // (row_bytes * runtime.gang_batch))
    made = factory(config.name, spec, runtime, schema, missing)
    with made as labelled, DataContext.current(_context(runtime, progress)):
        paths = [shard.path for shard in tokens]
        rows = ray.data.read_parquet(
            paths, filesystem=tokens[0].filesystem, fragment_scan_options=VERIFIED
        )
        rows = rows.select_columns(schema.names[:-1])
        if config.labels.fraction < 1:
            some = partial(_keep, fraction=config.labels.fraction)
            rows = rows.map_batches(some, batch_format="pyarrow", batch_size=None)
        rows.repartition(target_num_rows_per_block=batches * runtime.gang_batch).map_batches(
            labelled,
            batch_size=runtime.gang_batch,
            batch_format="pyarrow",
            num_cpus=0,
            compute=TaskPoolStrategy(size=IN_FLIGHT * runtime.gangs),
        ).write_parquet(
            directory.path,
            filesystem=directory.filesystem,
            schema=schema,
            row_group_size=row_group_rows(row_bytes),
            **CHECKSUMS,
            ray_remote_args={"num_cpus": 0},
        )
        rate, gangs = ray.get([labelled.meter.rate.remote(), labelled.meter.gangs.remote()])
    return rate, sum(gangs.values())


def _context(runtime: RuntimeConfig, progress: Location) -> DataContext:
    """Return a context for one split's pipeline: what is done, and what the gangs leave free.

    Beside the gangs' CPUs it needs two: one for the actor that skips finished rows (which asks for
    1 GiB, too), one for the tasks that list, read and cut. Writers ask for none, so that the end of
    the stream is never starved by its beginning.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # without a terminal: 20 lines every 10 seconds
    context.checkpoint_config = CheckpointConfig(
        id_column="sequence_id",
        checkpoint_path=progress.path,
        override_filesystem=progress.filesystem,
        delete_checkpoint_on_success=False,
    )
    free = ray.cluster_resources().get("CPU", 0) - runtime.gangs * runtime.gang_ranks
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=max(1.0, free))
    return context


def _keep(batch: pa.Table, fraction: float) -> pa.Table:
    return batch.filter(pa.array(keep(batch["sequence_id"].to_numpy(), fraction)))


def _written(directory: Location) -> int:
    """Return how many sequences the label shards of an earlier try have."""
    count = 0
    for shard in directory.files(".parquet"):
        # One that a kill has cut off is removed by Ray Data, and its sequences are labelled again.
        with suppress(pa.ArrowInvalid, OSError), shard.open() as file:
            count += open_parquet(file).metadata.num_rows
    return count


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
    batch = max(config.transition.train.global_batch, config.dmt.train.global_batch)
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
