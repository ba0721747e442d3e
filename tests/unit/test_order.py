"""The order of rows: a permutation of every epoch, by arithmetic alone."""

import itertools
import tracemalloc

import numpy as np
import pytest

from smt_ray.data.order import Order, mixed, permuted, share


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 255, 1024, 4097])
def test_a_permutation_sends_each_place_to_a_place_of_its_own(size):
    for key in range(5):
        found = permuted(np.arange(size), size, mixed(0, key))
        assert sorted(found.tolist()) == [*range(size)]


def test_every_place_goes_anywhere_alike():
    size, keys = 7, 4000
    found = permuted(
        np.tile(np.arange(size), keys), size, np.repeat(mixed(1, np.arange(keys)), size)
    )
    counts = np.zeros((size, size), int)
    np.add.at(counts, (np.tile(np.arange(size), keys), found), 1)
    mean = keys / size
    assert np.abs(counts - mean).max() < 5 * (mean * (1 - 1 / size)) ** 0.5
    pairs = found.reshape(keys, size)
    after = ((pairs[:, 1] - pairs[:, 0]) % size == 1).mean()
    assert abs(after - 1 / (size - 1)) < 0.02


@pytest.mark.parametrize("rows", [8, 9, 31, 80, 107])
@pytest.mark.parametrize("chunk", [1, 7, 10, 1000])
def test_an_epoch_has_every_row_once(rows, chunk):
    order = Order(rows, chunk=chunk, global_batch=8, seed=3, lanes=4)
    steps, columns = np.arange(order.steps_per_epoch), np.arange(8)
    for epoch in range(3):
        found = order.at(epoch * len(steps) + steps[:, None], columns)
        assert len({*found.flat}) == found.size == rows // 8 * 8
        assert 0 <= found.min() <= found.max() < rows


def test_rows_of_a_chunk_stay_together():
    order = Order(100_000, chunk=100, global_batch=64, seed=0)
    found = order.at(np.arange(order.steps_per_epoch)[:, None], np.arange(64))
    for lane in found.T:
        assert len({*(lane // 100)}) <= len(lane) / 100 + 3


def test_what_is_left_out_differs_from_epoch_to_epoch():
    order = Order(107, chunk=10, global_batch=8, seed=0)
    left = set()
    for epoch in range(20):
        steps = epoch * order.steps_per_epoch + np.arange(order.steps_per_epoch)
        left |= {*range(107)} - {*order.at(steps[:, None], np.arange(8)).flat}
    assert len(left) > 30


def test_a_plan_of_1e12_tokens_takes_no_memory():
    tracemalloc.start()
    order = Order(10**12 // 320, chunk=1024, global_batch=4096, seed=0)
    columns = np.arange(4096)[share(4096, 511, 1024)]
    order.at(0, columns)
    for step in range(100):
        order.at(step, columns)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("group", [1, 2, 4])
def test_shares_are_consecutive_groups_and_as_equal_as_can_be(group):
    for total, world in ((8, 2), (20, 4), (128, 7)):
        parts = [[*range(total)][share(total, rank, world, group)] for rank in range(world)]
        assert [*itertools.chain(*parts)] == [*range(total)]
        assert max(map(len, parts)) - min(map(len, parts)) <= group
        assert all(len(part) % group == 0 for part in parts)
