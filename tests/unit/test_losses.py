"""The losses against plain loops."""

import math
import statistics

import pytest
import torch

from smt_ray.objectives.losses import (
    COVARIANCE_FLOOR,
    PAIRS,
    VARIANCE_FLOOR,
    slot_deviation,
    squared_error,
    uniformity,
    whiten,
    whitener,
)
from smt_ray.objectives.objective import hashed, mean_over, target_nats, valid_targets

M, K, D = 6, 3, 4


def test_squared_error_is_the_sum_over_the_count():
    predicted, label = torch.randn(2, 5, K, D), torch.randn(2, 5, K, D).bfloat16()
    total = 0.0
    flat = zip(predicted.flatten().tolist(), label.float().flatten().tolist(), strict=True)
    for a, b in flat:
        total += (a - b) ** 2
    found = squared_error(predicted, label, torch.tensor(7.0))
    assert float(found) == pytest.approx(total / 7, rel=1e-6)


def test_slot_deviation_is_that_over_sequences_not_over_time():
    clock = torch.tensor([3.0, -5.0])[:, None, None]
    memory = torch.randn(50, 2, K, D) * torch.tensor([0.5, 2.0, 1e-4])[:, None] + clock
    found = slot_deviation(memory)
    for slot in range(K):
        columns = memory[:, :, slot].flatten(1).T.tolist()
        variance = sum(statistics.variance(column) for column in columns) / len(columns)
        assert float(found[slot]) == pytest.approx((variance + VARIANCE_FLOOR) ** 0.5, rel=1e-5)
    assert float(found[2]) == pytest.approx(VARIANCE_FLOOR**0.5, rel=1e-3)


def test_an_error_relative_to_the_deviation_gains_nothing_from_a_smaller_memory():
    memory, error, size = torch.randn(50, K, D), torch.randn(50, K, D), torch.ones(K, 1)
    size.requires_grad_()

    def gain(unit):
        own, label = (memory + error) * size / unit, memory * size / unit
        loss = squared_error(own, label, torch.tensor(float(memory.numel())))
        return torch.autograd.grad(loss, size)[0]

    whitened, plain = gain(slot_deviation(memory[:, None] * size)), gain(torch.ones(K, 1))
    assert (plain > 0.5).all()
    assert (whitened.abs() < 0.05 * plain).all()


def test_whitened_directions_vary_alike_however_little_they_did():
    scale = torch.tensor([3.0, 1.0, 0.3, 0.1])
    memory = torch.randn(50, 20, K, D) * scale @ torch.randn(D, D) / D**0.5
    factor = whitener(memory)
    own = whiten(memory, factor)
    assert own.shape == memory.shape
    for slot in range(K):
        covariance = torch.cov(own[:, :, slot].flatten(0, 1).T, correction=0)
        inverse = torch.linalg.inv(factor[slot])
        floor = COVARIANCE_FLOOR * inverse @ inverse.T
        torch.testing.assert_close(covariance + floor, torch.eye(D), atol=1e-4, rtol=0)


ODD_MEMORIES = {
    "collapsed": torch.ones(8, 4, K, D),
    "zero": torch.zeros(8, 4, K, D),
    "of rank one": torch.randn(8, 4, K, 1, generator=torch.Generator().manual_seed(1)).expand(
        8, 4, K, D
    ),
    "fewer than directions": torch.eye(D)[:2].expand(1, K, 2, D).transpose(1, 2),
}


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("name", ODD_MEMORIES)
def test_any_finite_memory_has_a_whitener_and_a_gradient(name, size):
    memory = (ODD_MEMORIES[name] * size).requires_grad_()
    for precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            own = whiten(memory, whitener(memory))
        assert own.isfinite().all()
        # By the whitening, no direction varies by more than 1, whatever the memory.
        assert own.var((0, 1), correction=0).max() < 1.01
        (gradient,) = torch.autograd.grad(own.square().sum(), memory)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_memory_that_is_not_finite_makes_a_loss_that_is_not_and_raises_nothing(bad):
    memory = torch.randn(8, 4, K, D)
    memory[3, 1, 1, 2] = bad
    memory.requires_grad_()
    own = whiten(memory, whitener(memory))
    assert own[:, :, 1].isnan().any()
    assert own[:, :, [0, 2]].isfinite().all()
    own.square().sum().backward()


def test_whitening_gives_the_gradient_of_a_plain_formula():
    """Whitened by the factor, squared and summed: the trace of inverse covariance times scatter."""
    memory = torch.randn(30, 4, K, D).requires_grad_()
    error = torch.randn(30, 4, K, D)
    found = torch.autograd.grad(whiten(error, whitener(memory)).square().sum(), memory)[0]
    exact = memory.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for slot in range(K):
        covariance = torch.cov(exact[:, :, slot].flatten(0, 1).T, correction=0)
        inverse = torch.linalg.inv(covariance + COVARIANCE_FLOOR * torch.eye(D))
        own = error[:, :, slot].flatten(0, 1).double()
        total = total + (own @ inverse * own).sum()
    wanted = torch.autograd.grad(total, exact)[0].float()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_directions_are_whitened_in_full_precision_under_autocast_too():
    memory = torch.randn(500, 4, K, D) * torch.tensor([30.0, 3.0, 0.1, 0.01]) @ torch.randn(D, D)
    factor = whitener(memory)
    own = whiten(memory, factor)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitener(memory), factor)
        assert torch.equal(whiten(memory, factor), own)


def test_uniformity_equals_brute_force_over_the_drawn_pairs():
    memory = torch.randn(M, K, D) * 3
    draws = torch.randint(1 << 40, (4, PAIRS))
    kernels = []
    for a, i, b, j in draws.T.tolist():
        a, i, b, j = a % M, i % K, b % M, j % K
        if (a, i) == (b, j):  # a token against itself says nothing
            continue
        first, second = memory[a, i] / memory[a, i].norm(), memory[b, j] / memory[b, j].norm()
        kernels.append(math.exp(-2 * float((first - second).square().sum())))
    assert 0.7 * PAIRS < len(kernels) < PAIRS
    expected = math.log(sum(kernels) / len(kernels))
    assert float(uniformity(memory, draws)) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_leaves_out_masked_targets():
    logits, targets = torch.randn(5, 4, 9), torch.randint(9, (5, 4))
    targets[0], targets[3, 1:] = -100, -100
    nats = [
        -float(torch.log_softmax(row, 0)[target])
        for row, target in zip(logits.flatten(0, 1), targets.flatten().tolist(), strict=True)
        if target != -100
    ]
    assert float(valid_targets(targets)) == len(nats) == 13
    found = mean_over(torch.tensor(13.0), target_nats(logits, targets))
    assert float(found) == pytest.approx(sum(nats) / 13, rel=1e-6)


def test_cross_entropy_without_any_target_is_zero():
    targets = torch.full((2, 3), -100)
    logits = torch.randn(2, 3, 9, requires_grad=True)
    loss = mean_over(valid_targets(targets), target_nats(logits, targets))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_hashed_is_uniform_and_a_function_of_its_keys():
    ids = torch.arange(100_000)
    first = hashed(3, torch.tensor(7), ids)
    assert torch.equal(first, hashed(3, 7, ids))
    assert torch.equal(first[:, None].expand(-1, 2), hashed(3, 7, ids[:, None].expand(-1, 2)))
    assert torch.equal(hashed(3, 7, ids.flip(0)), first.flip(0))
    assert first.min() >= 0
    assert first.unique().numel() == 100_000
    for other in (hashed(4, 7, ids), hashed(3, 8, ids), hashed(7, 3, ids), first.roll(1)):
        assert torch.corrcoef(torch.stack((first, other)).double())[0, 1].abs() < 0.02
    for modulus in (2, 13, 127):
        counts = torch.bincount(first % modulus).double()
        mean = 100_000 / modulus
        assert ((counts - mean).square().sum() / mean) < modulus + 6 * (2 * modulus) ** 0.5
    chance = first.double() / 2**62
    assert float(chance.mean()) == pytest.approx(0.5, abs=0.005)
    assert float((chance < 1 / 12).double().mean()) == pytest.approx(1 / 12, abs=0.004)
