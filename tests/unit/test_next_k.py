"""What a memory tells of later targets: the decoder by hand, one memory and target at a time."""

from dataclasses import replace

import pytest
import torch

from smt_ray.evaluation import budget
from smt_ray.evaluation.next_k import next_k
from smt_ray.evaluation.scores import Score
from smt_ray.model.decoder import Decoder
from tests.samples import MODEL, VOCABULARY, output_sizes, random_weights

B, L, K, D, HORIZON = 3, 6, MODEL.memory_tokens, MODEL.width, 4


@pytest.fixture
def batch():
    inputs, targets = torch.randint(VOCABULARY, (2, B, L))
    return torch.randn(B, L, K, D), inputs, targets.masked_fill(torch.rand(B, L) < 0.3, -100)


@pytest.mark.parametrize(("size", "positions"), [(1, False), (1 << 17, True), (1 << 29, True)])
def test_it_scores_each_target_ahead_of_each_memory(batch, monkeypatch, size, positions):
    monkeypatch.setattr(budget, "CPU_BYTES", size)
    memory, inputs, targets = batch
    decoder = random_weights(
        Decoder(replace(MODEL, absolute_positions=positions), VOCABULARY)
    ).requires_grad_(False)
    bits, hits, count = torch.zeros(3, HORIZON)
    for row in range(B):
        for t in range(L):
            for i in range(min(HORIZON, L - t)):
                target = targets[row, t + i]
                if target != -100:
                    after = inputs[row, t + 1 : t + i + 1][None]
                    logits = decoder(memory[row, t][None], after, torch.tensor([t]))[0, i]
                    bits[i] -= logits.log_softmax(0)[target] / torch.tensor(2.0).log()
                    hits[i] += logits.argmax() == target
                    count[i] += 1
    found = next_k(memory, decoder, inputs, targets, HORIZON)
    torch.testing.assert_close(found.curve.float(), bits / count, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.accuracy_curve.float(), hits / count)
    # With two units a target, half of the bits fall on each.
    halved = next_k(memory, decoder, inputs, targets, HORIZON, units=2.0)
    torch.testing.assert_close(halved.curve, found.curve / 2)


def test_a_large_vocabulary_is_read_in_parts_to_the_same_score(batch, monkeypatch):
    memory, inputs, targets = batch
    vocabulary = 50_257
    decoder = random_weights(Decoder(MODEL, vocabulary)).requires_grad_(False)
    whole = next_k(memory, decoder, inputs, targets, HORIZON)
    monkeypatch.setattr(budget, "CPU_BYTES", 24 * 8 << 20)
    with output_sizes(decoder.logits) as sizes:
        found = next_k(memory, decoder, inputs, targets, HORIZON)
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == B * L * HORIZON * vocabulary
    torch.testing.assert_close(found.sums, whole.sums, rtol=1e-5, atol=1e-5)


def test_the_next_target_is_the_readouts(batch):
    memory, inputs, targets = batch
    decoder = random_weights(Decoder(MODEL, VOCABULARY)).requires_grad_(False)
    score = Score()
    score.add(memory, decoder, targets)
    found = next_k(memory, decoder, inputs, targets, HORIZON)
    torch.testing.assert_close(found.sums[:, 0], score.sums.sum(1), atol=1e-4, rtol=1e-5)
    alone = next_k(memory, decoder, inputs, targets, 1)
    torch.testing.assert_close(alone.sums, found.sums[:, :1], atol=1e-4, rtol=1e-5)
