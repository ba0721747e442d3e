"""The reader: which rows a batch holds depends on seed, step and ids, and on nothing else."""

import numpy as np
import pytest
import torch

from smt_ray.data.reader import SPREAD, Reader, chunk_rows
from smt_ray.data.rows import to_columns
from smt_ray.data.shards import from_memory
from smt_ray.data.storage import Location
from tests.samples import MODEL, rows, tokens_of, write

ROWS, L, BATCH, LANES = 107, 6, 8, 4
STEPS = ROWS // BATCH
ALL = np.arange(BATCH)
LAYOUTS = [(1, 1000), (1, 10), (5, 3), (13, 1)]


@pytest.fixture(params=[None, MODEL], ids=["tokens", "labels"])
def table(request):
    return rows(ROWS, L, request.param), request.param


def reader(place, table, layout=(3, 7), rank=0, world=1, seed=0, directory="shards"):
    """Return a reader of the rows in a layout of (files, rows of a group), in random file order."""
    data, model = table
    directory = Location.of(place / f"{directory}-{layout[0]}-{layout[1]}")
    manifest = write(directory, data, model, files=layout[0], group=layout[1])
    own = {"global_batch": BATCH, "lanes": LANES, "seed": seed, "chunk": 10}
    return Reader(directory, manifest, **own, rank=rank, world=world)


def ids(batch):
    return batch["sequence_id"].tolist()


def test_every_row_comes_once_an_epoch_but_the_last_partial_batch(tmp_path, table):
    reading = reader(tmp_path, table)
    assert reading.order.steps_per_epoch == STEPS
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
    tokens = tokens_of(data)
    assert torch.equal(batch["inputs"], torch.from_numpy(tokens[at, :-1]).long())
    assert torch.equal(batch["targets"], torch.from_numpy(tokens[at, 1:]).long())
    if model is None:
        assert set(batch) == {"sequence_id", "inputs", "targets", "bytes"}
        assert batch["bytes"].tolist() == [L] * BATCH
    else:
        assert set(batch) == {"sequence_id", "inputs", "targets", "memory"}
        whole = from_memory(to_columns(data), model.memory_tokens, model.width, "float32")
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
    first_five = {row // 10 for step in range(5) for row in reading.order.at(step, ALL).tolist()}
    assert len(first_five) <= 2 * LANES
    list(map(reading.batch, range(STEPS)))
    assert len(reading.groups.held) <= 2 * LANES + 2
    half = reader(tmp_path, table, layout=(1, 10), rank=1, world=2)
    list(map(half.batch, range(STEPS)))
    assert len(half.groups.held) <= LANES + 2


def test_few_rows_that_stand_for_all_come_from_everywhere(tmp_path):
    directory = Location.of(tmp_path)
    manifest = write(directory, rows(640, L), group=10)
    own = {"global_batch": 64, "seed": 0, "lanes": 1}
    spread = Reader(directory, manifest, **own, chunk=SPREAD)
    close = Reader(directory, manifest, **own, chunk=40)
    groups = [len({row // 10 for row in ids(reading.batch(0))}) for reading in (spread, close)]
    assert groups[0] > 30 > 12 >= groups[1]
    assert (chunk_rows(1024), chunk_rows(10)) == (16, 1)


def test_a_rank_opens_the_shards_that_it_reads_alone(tmp_path, monkeypatch):
    """What a start costs does not grow with the shards."""
    opened = []
    whole = Location.open

    def noted(file):
        opened.append(file)
        return whole(file)

    monkeypatch.setattr(Location, "open", noted)
    counts = []
    for files in (8, 64):
        reading = reader(tmp_path, (rows(64 * 32, L), None), layout=(files, 10))
        place = reading.shards.directory
        assert str(place) not in {str(file.parent) for file in opened}
        reading.batch(0)
        counts.append(len({file.name for file in opened if file.parent == place}))
    assert max(counts) <= BATCH * 3, counts  # of the batch, and of two that are read ahead


def test_rows_are_followed_in_any_order(tmp_path, table):
    alone = reader(tmp_path, table)
    for world in (1, 4):
        ranks = [reader(tmp_path, table, rank=rank, world=world) for rank in range(world)]
        for rank in ranks:
            steps = np.array([5, 0, STEPS + 2, 0, 5])
            columns = rank.columns[np.array([0, 1, 0, 0, 1])]
            (found,) = rank.follow([(steps, columns)])
            for number, (step, column) in enumerate(zip(steps, columns, strict=True)):
                batch = alone.batch(int(step))
                assert all(torch.equal(found[k][number], batch[k][int(column)]) for k in batch)


def test_too_few_rows_are_refused_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^global-batch=8: .* holds only 7 sequences; give [^\n]*$"
    ):
        reader(tmp_path, (rows(7, L), None))
