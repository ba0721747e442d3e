"""Sequences of four times the trained length, on which an RNN can only run on.

Shapes: N sequences, L inputs in a sequence that was trained on.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from smt_ray.config import DataConfig
from smt_ray.data.reader import Batch
from smt_ray.data.shards import Manifest, open_parquet, whole
from smt_ray.data.storage import Location
from smt_ray.data.synthetic import task_of
from smt_ray.objectives.objective import hashed

FACTOR = 4
"""Length over the trained length."""


def joined_windows(
    directory: Location, manifest: Manifest, count: int, rows: int
) -> Iterator[Batch]:
    """Yield `FACTOR` consecutive windows of text as one sequence, `rows` sequences at a time.

    Windows of one document stream have consecutive identities and overlap by one token. Groups that
    are not whole are left out; a hash of their identities draws `count` of the others.
    """
    groups = _whole_groups(directory, manifest)
    order = hashed(torch.from_numpy(groups)).argsort()[:count].numpy()
    chosen = np.sort(groups[order])
    length = manifest["sequence_length"]
    tokens = np.empty((len(chosen), FACTOR, length + 1), np.int32)
    units = np.empty((len(chosen), FACTOR), np.int64)
    for table in _tables(directory, manifest, ["sequence_id", "tokens", "bytes"]):
        ids = table["sequence_id"].to_numpy()
        wanted = np.isin(ids // FACTOR, chosen)
        place = np.searchsorted(chosen, ids[wanted] // FACTOR), ids[wanted] % FACTOR
        tokens[place] = table["tokens"].flatten().to_numpy().reshape(len(ids), -1)[wanted]
        units[place] = table["bytes"].to_numpy()[wanted]
    for start in range(0, len(chosen), rows):
        part = torch.from_numpy(tokens[start : start + rows]).long()
        yield {
            "inputs": part[:, :, :-1].flatten(1),
            "targets": part[:, :, 1:].flatten(1),
            "bytes": torch.from_numpy(units[start : start + rows]),
        }


def longer_task(data: DataConfig, count: int, rows: int) -> Iterator[Batch]:
    """Yield `count` sequences of a task at `FACTOR` times its length, `rows` at a time."""
    task, length = task_of(data), FACTOR * data.sequence_length
    for start in range(0, count, rows):
        # A training seed would draw the training symbols again; torch heeds 32 bits of a seed.
        seed = int(hashed(0, length, start)) % 2**32
        inputs, targets = task.generate(data.task, length, min(rows, count - start), seed)
        yield {"inputs": inputs, "targets": targets}


def _whole_groups(directory: Location, manifest: Manifest) -> Int[np.ndarray, " N"]:
    """Return identity / `FACTOR` where the directory holds all windows of the group."""
    tables = _tables(directory, manifest, ["sequence_id"])
    ids = [table["sequence_id"].to_numpy() for table in tables]
    groups, sizes = np.unique(np.concatenate(ids) // FACTOR, return_counts=True)
    return groups[sizes == FACTOR]


def _tables(
    directory: Location, manifest: Manifest, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    for name in manifest["shards"]:
        file = directory / name
        with whole(file), file.open() as stream:
            yield from open_parquet(stream).iter_batches(columns=columns)
