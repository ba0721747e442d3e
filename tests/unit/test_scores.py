"""Scores and drift against plain numpy."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from smt_ray.evaluation.scores import Drift, Score, compare
from smt_ray.model.decoder import Decoder
from smt_ray.model.encoder import build_encoder
from smt_ray.model.rnn import RNN
from tests.samples import MODEL, VOCABULARY, random_weights

L, K, D = 5, MODEL.memory_tokens, MODEL.width
SIZES = (7, 4, 1)


def test_drift_is_the_error_over_the_variance_of_the_labels():
    own = [torch.randn(n, L, K, D) for n in SIZES]
    label = [torch.randn(n, L, K, D) * 2 + 3 for n in SIZES]
    drift = Drift()
    for a, b in zip(own, label, strict=True):
        drift.add(a, b.bfloat16().float())
    predicted = torch.cat(own).double().numpy()
    stored = torch.cat(label).bfloat16().double().numpy()
    error, variance = ((predicted - stored) ** 2).mean(0), stored.var(0)
    curve = [error[t].sum() / variance[t].sum() for t in range(L)]
    np.testing.assert_allclose(drift.curve.numpy(), curve, rtol=1e-9)
    np.testing.assert_allclose(drift.nmse, error.sum() / variance.sum(), rtol=1e-9)


def test_drift_of_the_labels_is_zero_and_of_their_mean_is_one():
    label = torch.randn(50, L, K, D)
    same, mean = Drift(), Drift()
    same.add(label, label)
    mean.add(label.mean(0, keepdim=True).expand_as(label), label)
    assert same.nmse == 0
    np.testing.assert_allclose(mean.nmse, 1, rtol=1e-6)


def test_score_is_in_bits_by_position():
    readout = random_weights(Decoder(MODEL, VOCABULARY)).requires_grad_(False)
    score, total, curve = Score(), 0.0, np.zeros(L)
    for size in SIZES:
        memory, targets = torch.randn(size, L, K, D), torch.randint(VOCABULARY, (size, L))
        score.add(memory, readout, targets)
        for row in range(size):
            for t in range(L):
                logits = readout(memory[row : row + 1, t])[0, 0].double()
                bits = -float(torch.log_softmax(logits, 0)[targets[row, t]]) / math.log(2)
                total, curve[t] = total + bits, curve[t] + bits / sum(SIZES)
    assert score.count == sum(SIZES)
    np.testing.assert_allclose(score.bits, total, rtol=1e-6)
    np.testing.assert_allclose(score.curve.numpy(), curve, rtol=1e-6)


def test_equal_logits_cost_the_vocabularys_bits():
    readout, score = Decoder(MODEL, VOCABULARY), Score()  # fresh logits are zero
    score.add(torch.randn(3, L, K, D), readout, torch.zeros(3, L, dtype=torch.long))
    np.testing.assert_allclose(score.curve.detach().numpy(), math.log2(VOCABULARY), rtol=1e-6)


def test_the_rnn_is_scored_on_its_own_rollout_from_the_empty_memory():
    encoder = random_weights(build_encoder(MODEL, VOCABULARY), 1).requires_grad_(False)
    readout = random_weights(Decoder(MODEL, VOCABULARY), 2).requires_grad_(False)
    rnn = random_weights(RNN(MODEL, VOCABULARY), 3).requires_grad_(False)
    tokens = torch.randint(VOCABULARY, (sum(SIZES), L + 1))
    batches = [{"inputs": part[:, :-1], "targets": part[:, 1:]} for part in tokens.split(SIZES)]
    scores, drifts = compare(
        encoder, {"teacher": readout}, {"rnn": rnn}, batches, torch.device("cpu")
    )
    assert set(scores) == {"teacher", "rnn"}
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    label, own = encoder(inputs), rnn.rollout(inputs)
    for name, memory, network in (("teacher", label, readout), ("rnn", own, rnn.readout)):
        logits = network(memory.flatten(0, 1))[:, 0]
        nats = F.cross_entropy(logits, targets.flatten(), reduction="sum")
        np.testing.assert_allclose(scores[name].bits, float(nats) / math.log(2), rtol=1e-5)
    expected = Drift()
    expected.add(own, label)
    np.testing.assert_allclose(drifts["rnn"].nmse, expected.nmse, rtol=1e-5)
