"""A source of sequences in memory: what a benchmark trains on and what it scores."""

import torch

from benchmarks.corpus import Corpus
from smt_ray.pipeline.recipes import on_pixels


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
