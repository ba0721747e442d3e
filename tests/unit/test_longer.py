"""Long sequences: windows that belong together, tasks made anew."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from smt_ray.config import DataConfig
from smt_ray.data.shards import to_column
from smt_ray.data.storage import Location
from smt_ray.data.synthetic import block_seed
from smt_ray.evaluation.longer import FACTOR, joined_windows, longer_task
from smt_ray.tasks import TASKS
from tests.samples import rows, write

L = 5


@pytest.fixture
def streams(tmp_path):
    """Two streams of ten overlapping windows, a shard each."""
    random = np.random.default_rng(0)
    streams, windows, ids = [], [], []
    for unit in range(2):
        stream = random.integers(0, 99, 10 * L + 1, dtype=np.uint8)
        streams.append(stream)
        windows += [stream[r * L : r * L + L + 1] for r in range(10)]
        ids += [(unit << 32) + r for r in range(10)]
    table = pa.table(
        {
            "sequence_id": np.array(ids),
            "tokens": to_column(np.stack(windows)),
            "bytes": np.arange(20, dtype=np.int32),
        }
    )
    place = Location.of(tmp_path)
    return streams, place, write(place, table, files=2, group=2, vocabulary=99)


def test_joined_windows_are_a_stretch_of_the_stream(streams):
    texts, place, manifest = streams
    batches = list(joined_windows(place, manifest, count=99, rows=3))
    assert [len(batch["inputs"]) for batch in batches] == [3, 1]
    inputs = torch.cat([batch["inputs"] for batch in batches]).tolist()
    targets = torch.cat([batch["targets"] for batch in batches]).tolist()
    size = FACTOR * L
    starts = [(0, 0), (0, size), (1, 0), (1, size)]  # what is left fills no group
    assert inputs == [texts[u][s : s + size].tolist() for u, s in starts]
    assert targets == [texts[u][s + 1 : s + size + 1].tolist() for u, s in starts]
    units = torch.cat([batch["bytes"] for batch in batches]).sum(1)
    assert units.tolist() == [4 * first + 6 for first in (0, 4, 10, 14)]


def test_as_many_as_are_asked_for(streams):
    _, place, manifest = streams
    (batch,) = joined_windows(place, manifest, count=2, rows=9)
    assert batch["inputs"].shape == (2, FACTOR * L)


def test_none_where_no_group_is_whole(tmp_path):
    table = rows(3, L)
    place = Location.of(tmp_path)
    assert list(joined_windows(place, write(place, table), count=9, rows=9)) == []


def test_longer_tasks_differ_from_batch_to_batch_and_not_from_run_to_run():
    data = DataConfig(source="task:parity", sequence_length=L)
    first, second, third = longer_task(data, count=10, rows=4)
    assert [len(b["inputs"]) for b in (first, second, third)] == [4, 4, 2]
    assert first["inputs"].shape[1] == FACTOR * L
    assert torch.equal(first["targets"], first["inputs"].cumsum(1) % 2)
    assert not torch.equal(first["inputs"], second["inputs"])
    assert torch.equal(next(longer_task(data, 10, 4))["inputs"], first["inputs"])
    seed = block_seed(0, validation=False)
    trained = TASKS["parity"].generate(data.task, FACTOR * L, 4, seed)[0]
    assert not torch.equal(first["inputs"], trained)
