"""Sources of sequences in memory: what a benchmark trains on and what it scores."""

import torch

from benchmarks.memory import Corpus, TaskSource
from smt_ray.pipeline.recipes import on_pixels, on_task


def test_every_sequence_comes_once_in_a_pass_and_in_another_order_in_the_next():
    corpus = Corpus(on_pixels("tiny", "pixels:digits").data)
    count, rows = len(corpus.train), 7
    steps = range(-(-2 * count // rows))
    stream, again = corpus.training(rows), corpus.training(rows)
    drawn = torch.cat([stream.batch(step)["sequence_id"] for step in steps])
    first, second = drawn[:count], drawn[count : 2 * count]
    assert torch.equal(first.sort().values, torch.arange(count))
    assert torch.equal(second.sort().values, torch.arange(count))
    assert not torch.equal(first, second)
    for step in (steps[-1], 0):  # as a run that is resumed would ask for them
        assert torch.equal(again.batch(step)["sequence_id"], drawn[step * rows :][:rows])


def test_what_is_held_out_is_no_training_sequence_and_does_not_hang_on_the_seed():
    sources = [TaskSource(on_task("tiny", "task:copy", 8).data, seed) for seed in range(2)]
    batches = [source.training(64).batch(0)["inputs"] for source in sources]
    assert not torch.equal(*batches)
    held = [source.held_out("test")["inputs"] for source in sources]
    assert torch.equal(*held)
    validation = sources[0].held_out("validation")["inputs"]
    assert not torch.equal(held[0], validation)
