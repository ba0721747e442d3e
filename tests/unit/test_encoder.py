"""The encoder: causal bit by bit, the same by any way of asking, independent of the batch."""

import pytest
import torch

from smt_ray.config import ModelConfig
from smt_ray.model.encoder import Encoder
from tests.samples import VOCABULARY, random_weights

L = 24


@pytest.fixture(params=[True, False], ids=["projected", "plain"])
def encoder(request):
    config = ModelConfig(
        width=16,
        memory_tokens=3,
        heads=2,
        encoder_depth=2,
        register_depth=2,
        project_registers=request.param,
    )
    return random_weights(Encoder(config, VOCABULARY)).requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (5, L))


def changed_after(tokens, t):
    """Return tokens that differ from `tokens` at every position after t, and nowhere else."""
    other = tokens.clone()
    other[:, t + 1 :] = (other[:, t + 1 :] + 1 + torch.randint(VOCABULARY - 1, ())) % VOCABULARY
    return other


@pytest.mark.parametrize("t", [0, 1, 7, 16, L - 2])
def test_later_tokens_leave_a_memory_bitwise_equal(encoder, tokens, t):
    memory, other = encoder(tokens), encoder(changed_after(tokens, t))
    assert torch.equal(memory[:, : t + 1], other[:, : t + 1])
    assert (memory[:, t + 1 :] - other[:, t + 1 :]).abs().amax((-1, -2)).min() > 1e-4


@pytest.mark.parametrize("t", [0, 7, L - 2])
def test_asked_timesteps_are_causal_too(encoder, tokens, t):
    asked = torch.tensor([[t, 0, t // 2, t]]).expand(5, 4)
    other = changed_after(tokens, t)
    assert torch.equal(encoder(tokens, asked), encoder(other, asked))


def test_asked_timesteps_are_those_of_the_whole(encoder, tokens):
    asked = torch.stack([torch.randperm(L)[:6] for _ in tokens])
    whole = encoder(tokens).take_along_dim(asked[..., None, None], dim=1)
    torch.testing.assert_close(encoder(tokens, asked), whole, atol=1e-5, rtol=0)


def test_a_longer_sequence_begins_with_the_memories_of_a_shorter(encoder, tokens):
    short = encoder(tokens[:, :10])
    torch.testing.assert_close(encoder(tokens)[:, :10], short, atol=1e-5, rtol=0)


def test_memories_have_unit_mean_square(encoder, tokens):
    square = encoder(tokens).square().mean(-1)
    assert square.shape == (5, L, 3)
    torch.testing.assert_close(square, torch.ones_like(square), atol=1e-4, rtol=0)


def test_a_memory_does_not_depend_on_the_batch_around_it(encoder, tokens):
    whole = encoder(tokens)
    alone = torch.cat([encoder(row[None]) for row in tokens])
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)
    assert torch.equal(encoder(tokens.flip(0)).flip(0), whole)
