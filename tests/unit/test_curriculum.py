"""A curriculum of lengths: which, for how long, and which sequences."""

import itertools

import pytest
import torch

from smt_ray.config import DataConfig, TaskConfig
from smt_ray.data.curriculum import Beginnings, Drawn, Growing, growing, lengths, shortest
from smt_ray.data.reader import Stream
from smt_ray.tasks import TASKS

B, L, STEPS, SEED = 8, 32, 12, 3
TEXT = DataConfig(sequence_length=L)


def task(name="keysvalues", length=L, **sizes):
    return DataConfig(source=f"task:{name}", sequence_length=length, task=TaskConfig(**sizes))


class Whole(Stream):
    """This rank's share of random sequences of L inputs."""

    def __init__(self, rank=0, world=1):
        self.columns = slice(rank * B // world, (rank + 1) * B // world)

    def batch(self, step):
        random = torch.Generator().manual_seed(step)
        tokens = torch.randint(99, (B, L + 1), generator=random)
        batch = {
            "sequence_id": torch.arange(B) + step * B,
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "bytes": torch.full((B,), L),
        }
        return {name: value[self.columns] for name, value in batch.items()}


def grown(data, stages, rank=0, world=1):
    return growing(
        Whole(rank, world),
        data,
        stages,
        lambda step: step / STEPS,
        rows=B,
        seed=SEED,
        rank=rank,
        world=world,
    )


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_lengths_double_up_to_L():
    assert [lengths(TEXT, stages) for stages in (1, 3)] == [[L], [L // 4, L // 2, L]]
    assert lengths(TEXT, 9) == [1, 1, 1, 1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", TASKS)
def test_no_length_is_below_what_the_task_needs(name):
    data = task(name, pairs=3)
    least = shortest(data)
    for length in range(1, L):
        if length < least:
            with pytest.raises(ValueError, match=r"data\.(sequence-length|task)"):
                TASKS[name].check(data.task, length)
    TASKS[name].check(data.task, least)
    found = lengths(data, 8)
    assert found[-1] == L
    assert min(found) == least
    for shorter, longer in itertools.pairwise(found):
        assert longer == 2 * shorter or shorter == least


def test_a_task_that_needs_the_whole_length_has_no_shorter_one():
    assert lengths(task(pairs=8), 3) == [L, L, L]


@pytest.mark.parametrize("data", [TEXT, task(pairs=2)], ids=["text", "task"])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_each_stage_has_its_share_of_the_training(data, stages):
    stream = grown(data, stages)
    seen = [stream.batch(step)["inputs"].shape[1] for step in range(STEPS)]
    expected = lengths(data, stages)
    assert seen == [length for length in expected for _ in range(STEPS // stages)]
    last = stream.batch(STEPS)  # a step at the end, as when a checkpoint is restored
    assert equal(last, Whole().batch(STEPS))


def test_beginnings_are_prefixes_of_the_same_sequences():
    short, whole = Beginnings(Whole(), 5), Whole()
    for step in range(3):
        found, full = short.batch(step), whole.batch(step)
        assert torch.equal(found["sequence_id"], full["sequence_id"])
        for name in ("inputs", "targets"):
            assert torch.equal(found[name], full[name][:, :5])
        assert "bytes" not in found  # it counts those of the whole


def test_short_sequences_of_a_task_are_whole_ones_fresh_at_every_step():
    data = task("copy")
    stream = Drawn(data, 9, B, SEED)
    first, second = stream.batch(0), stream.batch(1)
    assert equal(first, Drawn(data, 9, B, SEED).batch(0))
    assert not torch.equal(first["inputs"], second["inputs"])
    assert not torch.equal(first["inputs"], Drawn(data, 9, B, SEED + 1).batch(0)["inputs"])
    assert not set(first["sequence_id"].tolist()) & set(second["sequence_id"].tolist())
    for batch in (first, second):
        assert batch["inputs"].shape == batch["targets"].shape == (B, 9)
        string = batch["inputs"][:, 1:5]
        assert torch.equal(batch["targets"][:, 5:], string.flip(1))
        assert (batch["targets"][:, :5] == -100).all()


def test_only_training_draws_easier_sequences():
    data = task(pairs=4, fewest_pairs=1)
    lacking = [
        Drawn(data, L, 500, SEED, training=training).batch(0)["inputs"][:, 0] == 0
        for training in (True, False)
    ]
    assert lacking[0].float().mean() > 0.5
    assert not lacking[1].any()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("data", [TEXT, task(pairs=2)], ids=["text", "task"])
def test_each_rank_has_its_share_of_the_same_global_batch(data, world):
    alone = grown(data, 3)
    ranks = [grown(data, 3, rank, world) for rank in range(world)]
    for step in range(STEPS):
        parts = [rank.batch(step) for rank in ranks]
        assert {len(part["inputs"]) for part in parts} == {B // world}
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        assert equal(joined, alone.batch(step))


def test_one_stage_is_the_stream_itself():
    whole = Whole()
    assert growing(whole, TEXT, 1, float, rows=B, seed=SEED, rank=0, world=1) is whole
    assert isinstance(grown(TEXT, 2), Growing)
