"""Scores and drift against plain numpy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smt_ray.evaluation import budget
from smt_ray.evaluation.scores import Drift, Score, compare, score_rollouts
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


def test_drift_has_no_value_where_all_labels_are_alike():
    label = torch.randn(50, L, K, D)
    label[:, 0] = label[0, 0]
    drift = Drift()
    drift.add(label + 0.1, label)
    assert drift.curve.isnan().tolist() == [True] + [False] * (L - 1)
    np.testing.assert_allclose(drift.nmse, L / (L - 1) * drift.curve[1:].mean(), rtol=0.1)


def test_drift_of_the_labels_is_zero_and_of_their_mean_is_one():
    label = torch.randn(50, L, K, D)
    same, mean = Drift(), Drift()
    same.add(label, label)
    mean.add(label.mean(0, keepdim=True).expand_as(label), label)
    assert same.nmse == 0
    np.testing.assert_allclose(mean.nmse, 1, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 1 << 29])
def test_score_counts_targets_only_by_position(monkeypatch, size):
    monkeypatch.setattr(budget, "CPU_BYTES", size)
    readout = random_weights(Decoder(MODEL, VOCABULARY)).requires_grad_(False)
    score = Score()
    bits, hits, valid = np.zeros(L), np.zeros(L), np.zeros(L)
    for count in SIZES:
        memory, targets = torch.randn(count, L, K, D), torch.randint(VOCABULARY, (count, L))
        targets[:, 1] = -100
        targets[0, 2:] = -100
        score.add(memory, readout, targets)
        for row in range(count):
            for t in range(L):
                if targets[row, t] != -100:
                    logits = readout(memory[row : row + 1, t])[0, 0].double()
                    bits[t] -= float(torch.log_softmax(logits, 0)[targets[row, t]]) / math.log(2)
                    hits[t] += int(logits.argmax()) == int(targets[row, t])
                    valid[t] += 1
    assert score.covered == valid.sum()
    np.testing.assert_allclose(score.bits, bits.sum() / valid.sum(), rtol=1e-6)
    assert score.accuracy == hits.sum() / valid.sum()
    assert valid[1] == 0
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(score.curve.numpy(), bits / valid, rtol=1e-6)
        np.testing.assert_allclose(score.accuracy_curve.numpy(), hits / valid)


def test_bits_are_per_unit_covered():
    readout = random_weights(Decoder(MODEL, VOCABULARY)).requires_grad_(False)
    memory, targets = torch.randn(6, L, K, D), torch.randint(VOCABULARY, (6, L))
    plain, covered = Score(), Score()
    plain.add(memory, readout, targets)
    covered.add(memory[:4], readout, targets[:4], 50)
    covered.add(memory[4:], readout, targets[4:], 10)
    # Nats are fp32, and batches of other sizes round otherwise.
    np.testing.assert_allclose(covered.bits * 60, plain.bits * 6 * L, rtol=1e-6)
    np.testing.assert_allclose(covered.curve.numpy() * 60, plain.curve.numpy() * 6 * L, rtol=1e-6)
    np.testing.assert_allclose(covered.bits, float(covered.curve.mean()), rtol=1e-9)


def test_equal_logits_cost_the_vocabularys_bits():
    readout, score = Decoder(MODEL, VOCABULARY).requires_grad_(False), Score()  # zero logits
    score.add(torch.randn(3, L, K, D), readout, torch.zeros(3, L, dtype=torch.long))
    np.testing.assert_allclose(score.curve.numpy(), math.log2(VOCABULARY), rtol=1e-6)


def test_a_batch_without_a_target_adds_none():
    score, none = Score(), torch.full((2, L), -100)
    score.add(torch.randn(2, L, K, D), Decoder(MODEL, VOCABULARY).requires_grad_(False), none)
    assert score.covered == 0


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
        bits = float(nats) / math.log(2) / targets.numel()
        np.testing.assert_allclose(scores[name].bits, bits, rtol=1e-5)
    expected = Drift()
    expected.add(own, label)
    np.testing.assert_allclose(drifts["rnn"].nmse, expected.nmse, rtol=1e-5)
    alone = score_rollouts({"rnn": rnn}, batches, torch.device("cpu"))
    assert torch.equal(alone["rnn"].sums, scores["rnn"].sums)
