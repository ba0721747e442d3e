import math
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from smt_ray.evaluation.ngrams import NgramModel

LENGTH = 64


def stdlib_windows(first: int, last: int) -> np.ndarray:
    """Return (N, L+1) windows of stride L over some files of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[first:last]
    text = np.frombuffer(b"\0".join(file.read_bytes() for file in files), np.uint8)
    rows = (len(text) - 1) // LENGTH
    return np.stack([text[n * LENGTH : n * LENGTH + LENGTH + 1] for n in range(rows)])


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    return stdlib_windows(0, 30).astype(np.int32)


@pytest.fixture(scope="module")
def validation() -> np.ndarray:
    return stdlib_windows(30, 34).astype(np.int32)


@pytest.fixture(scope="module")
def model(train: np.ndarray) -> NgramModel:
    return NgramModel.fit([train], vocabulary=256, order=2)


def brute_force(rows: list[list[int]], history: list[int], token: int, vocabulary: int) -> float:
    """Return the Witten-Bell probability of `token` after `history`, counted in plain Python."""
    lower = brute_force(rows, history[1:], token, vocabulary) if history else 1 / vocabulary
    n = len(history)
    after = Counter(
        row[t] for row in rows for t in range(max(n, 1), len(row)) if row[t - n : t] == history
    )
    if n == 0:
        after = Counter(token for row in rows for token in row[1:])
    if not after:
        return lower
    return (after[token] + len(after) * lower) / (after.total() + len(after))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_equals_a_brute_force_count(order: int) -> None:
    generator = np.random.default_rng(0)
    train, scored = generator.integers(0, 3, (4, 8)), generator.integers(0, 4, (3, 8))
    rows = train.tolist()
    expected = [
        [-math.log2(brute_force(rows, row[max(0, t - order) : t], row[t], 4)) for t in range(1, 8)]
        for row in scored.tolist()
    ]
    curve, total = NgramModel.fit([train], vocabulary=4, order=order).bits(scored)
    np.testing.assert_allclose(curve, np.mean(expected, axis=0), rtol=1e-12)
    assert total == pytest.approx(np.sum(expected), rel=1e-12)


def test_probabilities_of_all_tokens_sum_to_one(model: NgramModel) -> None:
    for history in ([101, 102], [0, 0], [255, 254]):  # frequent, rare, never seen
        rows = np.array([[*history, token] for token in range(256)])
        every = model._probability(rows, order=2)[:, -1]
        assert every.sum() == pytest.approx(1, abs=1e-12)
        assert every.min() > 0


def test_more_context_predicts_real_text_better(model: NgramModel, validation: np.ndarray) -> None:
    totals = [model.bits(validation, order)[1] / validation[:, 1:].size for order in range(3)]
    assert totals[0] > totals[1] + 0.5 > totals[2] + 1.0
    assert 1.5 < totals[2] < totals[0] < 6


def test_order_0_equals_the_entropy_of_its_own_text(model: NgramModel, train: np.ndarray) -> None:
    shares = np.unique(train[:, 1:], return_counts=True)[1] / train[:, 1:].size
    entropy = -np.sum(shares * np.log2(shares))
    bits = model.bits(train, 0)[1] / train[:, 1:].size
    assert entropy <= bits < entropy + 1e-3  # the smoothing costs a little, and cannot gain


def test_the_first_target_has_one_token_of_context(
    model: NgramModel, validation: np.ndarray
) -> None:
    one, two = model.bits(validation, 1)[0], model.bits(validation, 2)[0]
    assert two[0] == one[0]
    assert np.all(two[1:] < one[1:])


def test_counts_do_not_depend_on_how_the_windows_are_split(
    model: NgramModel, train: np.ndarray, validation: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smt_ray.evaluation.ngrams._BLOCK", 1000)
    parts = np.array_split(train, 200)
    small = NgramModel.fit(parts, vocabulary=256, order=2)
    assert small.bits(validation)[1] == pytest.approx(model.bits(validation)[1], rel=1e-12)


def test_a_large_vocabulary_stays_sparse() -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, (16, 33))
    assert NgramModel.fit([tokens], vocabulary=50_000, order=2).bits(tokens)[1] > 0
    with pytest.raises(ValueError, match="order=9: too large for a vocabulary of 50000 tokens"):
        NgramModel.fit([tokens], vocabulary=50_000, order=9)


def test_without_training_text_every_token_is_equally_likely() -> None:
    curve, total = NgramModel.fit([], vocabulary=256, order=1).bits(np.zeros((2, 5), np.int64))
    assert curve.tolist() == [8.0] * 4
    assert total == 64.0
