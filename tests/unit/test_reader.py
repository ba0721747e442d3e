"""The reader: which rows a batch holds depends on seed, step and ids, and on nothing else."""

import numpy as np
import pytest
import torch

from smt_ray.data.reader import Reader
from smt_ray.data.shards import memory_to_tensor
from smt_ray.data.storage import Location
from tests.samples import MODEL, rows, write

ROWS, L, BATCH, LANES = 107, 6, 8, 4
STEPS = ROWS // BATCH
LAYOUTS = [(1, 1000), (1, 10), (5, 3), (13, 1)]


@pytest.fixture(params=[None, MODEL], ids=["tokens", "labels"])
def table(request):
    return rows(ROWS, L, request.param), request.param


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Shuffle chunks of 10 rows, so that an epoch has several."""
    monkeypatch.setattr("smt_ray.data.reader.row_group_rows", lambda row_bytes: 10)


def reader(place, table, layout=(3, 7), rank=0, world=1, seed=0, directory="shards"):
    """Return a reader of the rows in a layout of (files, rows of a group), in random file order."""
    data, model = table
    directory = Location.of(place / f"{directory}-{layout[0]}-{layout[1]}")
    manifest = write(directory, data, model, files=layout[0], group=layout[1])
    return Reader(
        directory, manifest, global_batch=BATCH, lanes=LANES, seed=seed, rank=rank, world=world
    )


def ids(batch):
    return batch["sequence_id"].tolist()


def test_every_row_comes_once_an_epoch_but_the_last_partial_batch(tmp_path, table):
    reading = reader(tmp_path, table)
    assert reading.steps_per_epoch == STEPS
    epochs = []
    for epoch in range(3):
        found = [i for step in range(STEPS) for i in ids(reading.batch(epoch * STEPS + step))]
        assert len(set(found)) == len(found) == STEPS * BATCH
        assert set(found) <= set(range(ROWS))
        epochs.append(found)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(epochs[0]) != epochs[0]
    assert set(epochs[0]) != set(epochs[1])  # other rows are left out each time


def test_columns_are_the_rows_own(tmp_path, table):
    data, model = table
    batch = reader(tmp_path, table).batch(4)
    at = np.array(ids(batch))
    tokens = np.stack(data["tokens"].to_numpy(zero_copy_only=False))
    assert torch.equal(batch["inputs"], torch.from_numpy(tokens[at, :-1]).long())
    assert torch.equal(batch["targets"], torch.from_numpy(tokens[at, 1:]).long())
    if model is None:
        assert set(batch) == {"sequence_id", "inputs", "targets", "bytes"}
        assert batch["bytes"].tolist() == [L] * BATCH
    else:
        assert set(batch) == {"sequence_id", "inputs", "targets", "memory"}
        whole = memory_to_tensor(data["memory"], model.memory_tokens, model.width, "float32")
        assert torch.equal(batch["memory"], whole[at])


def test_a_batch_is_the_same_rows_at_any_world_size(tmp_path, table):
    alone = reader(tmp_path, table)
    for world in (2, 4, 8):  # 8: two ranks share a lane
        ranks = [reader(tmp_path, table, rank=r, world=world) for r in range(world)]
        for step in (0, 1, STEPS - 1, STEPS, 2 * STEPS + 3):
            parts = [ids(rank.batch(step)) for rank in ranks]
            assert {len(part) for part in parts} == {BATCH // world}
            assert [i for part in parts for i in part] == ids(alone.batch(step))


def test_a_batch_is_the_same_rows_in_any_layout(tmp_path, table):
    readers = [reader(tmp_path, table, layout) for layout in LAYOUTS]
    for step in (0, 5, STEPS, 3 * STEPS - 1):
        first, *others = [reading.batch(step) for reading in readers]
        for other in others:
            assert set(other) == set(first)
            assert all(torch.equal(other[name], first[name]) for name in first)


def test_a_batch_is_the_same_from_any_start_and_in_any_order(tmp_path, table):
    steps = [*range(2 * STEPS)]
    forward = reader(tmp_path, table)
    batches = [forward.batch(step) for step in steps]
    for start in (3, STEPS - 1, STEPS):
        fresh = reader(tmp_path, table)
        for step in steps[start : start + 4]:
            assert ids(fresh.batch(step)) == ids(batches[step])
    jumping = reader(tmp_path, table)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        batch = jumping.batch(step)  # not the one that was read ahead
        assert all(torch.equal(batch[name], batches[step][name]) for name in batch)


def test_the_seed_decides_the_order(tmp_path, table):
    first, again, other = (ids(reader(tmp_path, table, seed=s).batch(0)) for s in (0, 0, 1))
    assert first == again != other


def test_a_rank_reads_few_row_groups(tmp_path, table):
    """Lanes walk through chunks, so successive batches come from the same few groups."""
    reading = reader(tmp_path, table, layout=(1, 10))
    first_five = {tuple(place[:2]) for step in range(5) for place in reading.plan(step).tolist()}
    assert len(first_five) <= 2 * LANES
    list(map(reading.batch, range(STEPS)))
    assert len(reading._groups) <= 2 * LANES + 2
    half = reader(tmp_path, table, layout=(1, 10), rank=1, world=2)
    list(map(half.batch, range(STEPS)))
    assert len(half._groups) <= LANES + 2


def test_a_row_is_one_of_its_batch(tmp_path, table):
    for world in (1, 4):
        ranks = [reader(tmp_path, table, rank=rank, world=world) for rank in range(world)]
        for step in (0, STEPS + 2):
            for rank in ranks:
                batch = rank.batch(step)
                for column in range(BATCH // world):
                    row = rank.row(step, column)
                    assert all(torch.equal(row[name], batch[name][column]) for name in batch)


def test_too_few_rows_are_refused_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^global-batch=8: .* holds only 7 sequences; give [^\n]*$"
    ):
        reader(tmp_path, (rows(7, L), None))
