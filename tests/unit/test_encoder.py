"""The encoders: causal bit by bit, the same by any way of asking, independent of the batch."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smt_ray.config import ModelConfig
from smt_ray.model.blocks import rms_norm, rotation
from smt_ray.model.encoder import BidirectionalEncoder, build_encoder
from tests.samples import VOCABULARY, random_weights

L, K = 24, 3


def make(**settings):
    config = ModelConfig(width=16, memory_tokens=K, heads=2, encoder_depth=2, **settings)
    return random_weights(build_encoder(config, VOCABULARY)).requires_grad_(False)


KINDS: dict[str, dict[str, Any]] = {
    "causal": {"encoder": "causal"},
    "absolute positions": {"encoder": "causal", "absolute_positions": True},
    "bidirectional": {"encoder": "bidirectional"},
}


@pytest.fixture(params=sorted(KINDS))
def encoder(request):
    return make(**KINDS[request.param])


@pytest.fixture
def bidirectional(monkeypatch):
    seven_contexts = 7 * (L + K)
    monkeypatch.setattr("smt_ray.model.encoder.CHUNK_ON_CPU", seven_contexts)
    return make(encoder="bidirectional")


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (5, L))


def changed_after(tokens, t):
    """Return tokens that differ from `tokens` at every position after t, and nowhere else."""
    other = tokens.clone()
    other[:, t + 1 :] = (other[:, t + 1 :] + 1 + torch.randint(VOCABULARY - 1, ())) % VOCABULARY
    return other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_encoder_runs_in_the_dtype_of_its_weights(encoder, tokens, dtype):
    exact = encoder(tokens)
    memory = encoder.to(dtype)(tokens)
    assert memory.dtype == dtype
    assert (memory.float() - exact).abs().mean() < 0.2


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


def one_at_a_time(encoder: BidirectionalEncoder, tokens):
    """Return all memories by one pass a timestep over [x_0..x_t; registers], without padding."""
    memories = []
    for t in range(tokens.shape[1]):
        registers = encoder.register.expand(len(tokens), -1, -1)
        stream = torch.cat((encoder.embed(tokens[:, : t + 1]), registers), dim=1)
        by = rotation(stream.shape[1], encoder.head_width, tokens.device)
        for block in encoder.blocks:
            stream = block(stream, by=by)
        memories.append(rms_norm(stream[:, -K:]))
    return torch.stack(memories, dim=1)


def test_a_padded_chunk_equals_a_loop_over_timesteps(bidirectional, tokens):
    expected = one_at_a_time(bidirectional, tokens)
    torch.testing.assert_close(bidirectional(tokens), expected, atol=1e-5, rtol=0)
    asked = torch.stack([torch.randperm(L)[:9] for _ in tokens])
    picked = expected.take_along_dim(asked[..., None, None], dim=1)
    torch.testing.assert_close(bidirectional(tokens, asked), picked, atol=1e-5, rtol=0)


def test_a_chunk_reads_no_more_than_its_longest_context(bidirectional, tokens):
    widths = []
    bidirectional.embed.register_forward_hook(lambda *call: widths.append(call[2].shape[:2]))
    bidirectional(tokens)
    assert [rows for rows, _ in widths] == [7] * 17 + [1]
    assert [width for _, width in widths] == [min(7 * n + 6, 119) // 5 + 1 for n in range(18)]


def test_what_padding_holds_never_matters(bidirectional, tokens):
    present = torch.arange(L) >= torch.randint(L, (5, 1))
    assert not present.all()
    noise = torch.where(present, tokens, torch.randint(VOCABULARY, tokens.shape))
    assert not torch.equal(noise, tokens)
    memory = bidirectional.read(tokens, present)
    assert torch.equal(bidirectional.read(noise, present), memory)
    everything = torch.ones_like(present)
    assert (bidirectional.read(noise, everything) - memory).abs().amax() > 1e-3


def test_chunks_do_not_change_gradients(bidirectional, tokens, monkeypatch):
    asked = torch.randint(L, (5, 4))

    def gradients():
        bidirectional.requires_grad_().zero_grad()
        bidirectional(tokens, asked).pow(3).sum().backward()
        return [parameter.grad.clone() for parameter in bidirectional.parameters()]

    chunked = gradients()
    monkeypatch.setattr("smt_ray.model.encoder.CHUNK_ON_CPU", 1 << 20)
    torch.testing.assert_close(chunked, gradients(), atol=1e-3, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Call the operation."""
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_buffer_grows_with_the_square_of_the_length(precision):
    length, encoder = 8192, make(encoder="causal")
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        Largest() as largest,
    ):
        encoder(torch.randint(VOCABULARY, (1, length)))
    assert largest.numbers <= 8 * 16 * K * length  # D = 16: the hidden layer of the MLP
