"""Cells: every kind is an RNN update with a normalised state; the GRU against its equations."""

import pytest
import torch
from torch import nn

from smt_ray.config import ModelConfig
from smt_ray.model.blocks import rms_norm
from smt_ray.model.cells import CELLS, GruCell, build_cell
from smt_ray.model.rnn import RNN
from tests.samples import VOCABULARY, random_weights

K, D, N = 3, 8, 20


def config(cell, depth=2):
    return ModelConfig(width=D, memory_tokens=K, heads=2, cell=cell, cell_depth=depth)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", sorted(CELLS))
def test_every_kind_updates_a_memory(kind, depth):
    cell = random_weights(build_cell(config(kind, depth), VOCABULARY)).requires_grad_(False)
    memory, token = rms_norm(torch.randn(N, K, D)), torch.randint(VOCABULARY, (N,))
    after = cell(memory, token)
    assert after.shape == (N, K, D)
    torch.testing.assert_close(after.square().mean(-1), torch.ones(N, K), atol=1e-4, rtol=0)
    # Both the memory and the token matter, in every row; rows do not see each other.
    other_token = cell(memory, (token + 1) % VOCABULARY)
    other_memory = cell(rms_norm(memory + torch.randn(N, K, D)), token)
    for other in (other_token, other_memory):
        assert (after - other).abs().amax((1, 2)).min() > 1e-4
    alone = torch.cat([cell(m[None], t[None]) for m, t in zip(memory, token, strict=True)])
    torch.testing.assert_close(after, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", sorted(CELLS))
def test_every_kind_starts_from_the_empty_memory(kind):
    cell = random_weights(build_cell(config(kind), VOCABULARY))
    after = cell(torch.zeros(VOCABULARY, K, D), torch.arange(VOCABULARY))
    assert after.isfinite().all()
    assert torch.pdist(after.flatten(1)).min() > 1e-3


def test_gru_equals_its_equations():
    cell = random_weights(GruCell(config("gru"), VOCABULARY)).requires_grad_(False)
    memory, token = torch.randn(N, K, D), torch.randint(VOCABULARY, (N,))
    x, h, gru = cell.embed.weight[token], memory.reshape(N, K * D), cell.gru
    xs = (x @ gru.weight_ih.T + gru.bias_ih).chunk(3, dim=1)
    hs = (h @ gru.weight_hh.T + gru.bias_hh).chunk(3, dim=1)
    reset, update = torch.sigmoid(xs[0] + hs[0]), torch.sigmoid(xs[1] + hs[1])
    new = torch.tanh(xs[2] + reset * hs[2])
    expected = ((1 - update) * new + update * h).view(N, K, D)
    expected = expected / expected.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(cell(memory, token), expected, atol=1e-5, rtol=1e-5)


class Mixer(nn.Module):
    """A user's own kind of cell."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.width)
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, memory, token):
        return rms_norm(torch.tanh(self.mix(memory)) + self.embed(token)[:, None])


def test_a_registered_kind_makes_an_rnn(monkeypatch):
    monkeypatch.setitem(CELLS, "mixer", Mixer)
    rnn = RNN(config("mixer"), VOCABULARY)
    assert isinstance(rnn.cell, Mixer)
    assert rnn.rollout(torch.randint(VOCABULARY, (2, 5))).shape == (2, 5, K, D)
    assert len(list(rnn.generate(torch.tensor([1, 2]), 4))) == 4
