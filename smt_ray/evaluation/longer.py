"""Sequences of four times the trained length, on which an RNN can only run on.

Shapes: N sequences, L inputs in a sequence that was trained on.
"""

from collections.abc import Iterator

import numpy as np

from smt_ray.config import DataConfig
from smt_ray.data.manifest import Manifest
from smt_ray.data.order import mixed, permuted
from smt_ray.data.reader import Reader
from smt_ray.data.rows import Batch
from smt_ray.data.storage import Location
from smt_ray.data.synthetic import task_of
from smt_ray.objectives.objective import hashed

FACTOR = 4
"""Length over the trained length."""


def joined_windows(
    directory: Location, manifest: Manifest, count: int, rows: int
) -> Iterator[Batch]:
    """Yield `FACTOR` consecutive windows of text as one sequence, `rows` sequences at a time.

    Windows of one document stream have consecutive identities and overlap by one token. A seeded
    draw takes `count` of the groups that lie in one shard.
    """
    reader = Reader(directory, manifest, global_batch=1, seed=0)
    groups = np.diff(reader.shards.starts) // FACTOR
    ends = np.cumsum(groups)
    drawn = permuted(np.arange(min(count, ends[-1])), ends[-1], mixed(0, FACTOR))
    shard = np.searchsorted(ends, drawn, side="right")
    first = np.sort(reader.shards.starts[shard] + (drawn - (ends - groups)[shard]) * FACTOR)
    for start in range(0, len(first), rows):
        chosen = first[start : start + rows]
        batch = reader.read((chosen[:, None] + np.arange(FACTOR)).reshape(-1))
        yield {name: batch[name].view(len(chosen), -1) for name in ("inputs", "targets", "bytes")}


def longer_task(data: DataConfig, count: int, rows: int) -> Iterator[Batch]:
    """Yield `count` sequences of a task at `FACTOR` times its length, `rows` at a time."""
    task, length = task_of(data), FACTOR * data.sequence_length
    for start in range(0, count, rows):
        # A training seed would draw the training symbols again; torch heeds 32 bits of a seed.
        seed = int(hashed(0, length, start)) % 2**32
        inputs, targets = task.generate(data.task, length, min(rows, count - start), seed)
        yield {"inputs": inputs, "targets": targets}
