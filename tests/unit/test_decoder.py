"""The decoder: one horizon is the beginning of a longer one; a logit sees no later input."""

from dataclasses import replace

import pytest
import torch

from smt_ray.config import ModelConfig
from smt_ray.model.decoder import Decoder
from tests.samples import VOCABULARY, random_weights

K, D, N, F = 3, 8, 6, 7


@pytest.fixture(params=[1, 3])
def decoder(request):
    config = ModelConfig(width=D, memory_tokens=K, heads=2, decoder_depth=request.param)
    return random_weights(Decoder(config, VOCABULARY)).requires_grad_(False)


@pytest.fixture
def memory():
    return torch.randn(N, K, D)


@pytest.fixture
def following():
    return torch.randint(VOCABULARY, (N, F - 1))


def test_every_horizon_begins_like_a_longer_one(decoder, memory, following):
    longest = decoder(memory, following)
    assert longest.shape == (N, F, VOCABULARY)
    torch.testing.assert_close(decoder(memory), longest[:, :1], atol=1e-5, rtol=0)
    for horizon in range(2, F):
        logits = decoder(memory, following[:, : horizon - 1])
        torch.testing.assert_close(logits, longest[:, :horizon], atol=1e-5, rtol=0)


def test_a_clock_tells_when_later_inputs_arrive_and_nothing_of_the_memory(memory, following):
    config = ModelConfig(width=D, memory_tokens=K, heads=2, absolute_positions=True)
    decoder = random_weights(Decoder(config, VOCABULARY)).requires_grad_(False)
    plain = Decoder(replace(config, absolute_positions=False), VOCABULARY)
    plain.load_state_dict(decoder.state_dict())
    early, late = torch.full((N,), 2), torch.full((N,), 9)
    first, second = decoder(memory, following, early), decoder(memory, following, late)
    torch.testing.assert_close(first[:, 0], second[:, 0], atol=1e-5, rtol=0)
    assert (first - second)[:, 1:].abs().amax(-1).min() > 1e-4
    torch.testing.assert_close(decoder(memory), plain(memory), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_decoder_runs_in_the_dtype_of_its_weights(memory, following, dtype):
    config = ModelConfig(width=D, memory_tokens=K, heads=2, absolute_positions=True)
    decoder = random_weights(Decoder(config, VOCABULARY)).requires_grad_(False).to(dtype)
    logits = decoder(memory.to(dtype), following, torch.full((N,), 2))
    assert logits.dtype == dtype


@pytest.mark.parametrize("at", range(F - 1))
def test_a_logit_sees_no_later_input(decoder, memory, following, at):
    other = following.clone()
    other[:, at] = (other[:, at] + 1) % VOCABULARY
    before, after = decoder(memory, following), decoder(memory, other)
    assert torch.equal(before[:, : at + 1], after[:, : at + 1])
    assert (before - after)[:, at + 1].abs().amax(-1).min() > 1e-4


def test_every_memory_token_matters_to_the_first_logit(decoder, memory):
    for slot in range(K):
        other = memory.clone()
        other[:, slot] += torch.randn(N, D)
        assert (decoder(memory) - decoder(other)).abs().amax((1, 2)).min() > 1e-4
