"""Gradient norms against autograd by hand, one sequence and one timestep at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smt_ray.config import LossConfig
from smt_ray.evaluation import budget
from smt_ray.evaluation.gradients import last_only, supervised_gradients, unrolled_gradients
from smt_ray.model.cells import build_cell
from smt_ray.model.decoder import Decoder
from smt_ray.model.rnn import RNN
from tests.samples import MODEL, VOCABULARY, output_sizes, random_weights

B, L, K, D = 3, 6, MODEL.memory_tokens, MODEL.width


@pytest.fixture
def batch():
    inputs, targets = torch.randint(VOCABULARY, (2, B, L))
    return inputs, targets.masked_fill(torch.rand(B, L) < 0.4, -100)


def test_unrolled_gradients_are_those_of_a_loss_from_the_memory_on(batch):
    inputs, targets = batch
    rnn = random_weights(RNN(MODEL, VOCABULARY))
    norms = np.zeros(L)
    for row in range(B):
        memories = rnn.rollout(inputs[row : row + 1])[0].detach()
        for t in range(L):
            leaf = memory = memories[t : t + 1].clone().requires_grad_()
            loss = torch.zeros(())
            for later in range(t, L):
                if later > t:
                    memory = rnn.step(memory, inputs[row, later : later + 1])
                if targets[row, later] != -100:
                    loss = loss - rnn.logits(memory).log_softmax(1)[0, targets[row, later]]
            if loss.requires_grad:
                norms[t] += float(torch.autograd.grad(loss, leaf)[0].norm()) / B
    found = unrolled_gradients(rnn, inputs, targets)
    np.testing.assert_allclose(found, norms, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "positions"), [(1, False), (1, True), (8 * 2 * 24 << 10, True), (1 << 29, True)]
)
def test_supervised_gradients_are_those_of_equation_5(batch, monkeypatch, size, positions):
    monkeypatch.setattr(budget, "CPU_BYTES", size)
    inputs, targets = batch
    loss = LossConfig(dynamics=0.3, horizon=3)
    decoder = random_weights(Decoder(replace(MODEL, absolute_positions=positions), VOCABULARY))
    cell = random_weights(build_cell(MODEL, VOCABULARY), 1)
    memory = torch.randn(B, L, K, D)
    norms = np.zeros(L)
    for row in range(B):
        leaves = [memory[row, t][None].clone().requires_grad_() for t in range(L)]
        total = torch.zeros(())
        for t in range(L):
            before = leaves[t - 1] if t else torch.zeros(1, K, D)
            predicted = cell(before, inputs[row, t : t + 1])
            total = total + loss.dynamics * F.mse_loss(predicted, leaves[t])
            last = min(t + loss.horizon, L)
            logits = decoder(leaves[t], inputs[row, t + 1 : last][None], torch.tensor([t]))[0]
            answers = targets[row, t:last]
            nats = F.cross_entropy(logits, answers, ignore_index=-100, reduction="sum")
            total = total + nats
        for t, gradient in enumerate(torch.autograd.grad(total, leaves)):
            norms[t] += float(gradient.norm()) / B
    found = supervised_gradients(memory, decoder, cell, inputs, targets, loss)
    np.testing.assert_allclose(found, norms, rtol=1e-4)


def test_a_large_vocabulary_is_read_in_parts_to_the_same_gradients(batch, monkeypatch):
    vocabulary, loss = 50_257, LossConfig(horizon=4)
    rnn = random_weights(RNN(MODEL, vocabulary))
    memory = torch.randn(B, L, K, D)
    inputs, targets = batch

    def norms():
        unrolled = unrolled_gradients(rnn, *batch)
        networks = (rnn.readout, rnn.cell)
        return unrolled, supervised_gradients(memory, *networks, inputs, targets, loss)

    whole = norms()
    monkeypatch.setattr(budget, "CPU_BYTES", 24 * 8 << 20)
    with output_sizes(rnn.readout.logits) as sizes:
        found = norms()
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == B * L * vocabulary * (1 + loss.horizon)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_gradient_comes_from_after_the_last_target(batch):
    inputs, targets = batch
    targets[:, 4:] = -100
    found = unrolled_gradients(random_weights(RNN(MODEL, VOCABULARY)), inputs, targets)
    assert torch.equal(found[4:], torch.zeros(2))


def test_last_only_keeps_the_last_target_of_each_row():
    targets = torch.tensor([[5, 6, -100], [-100, -100, 7], [-100, -100, -100]])
    expected = torch.tensor([[-100, 6, -100], [-100, -100, 7], [-100, -100, -100]])
    assert torch.equal(last_only(targets), expected)
