"""Cells: every kind is an RNN update; gates against their equations; a user's own class."""

import sys

import pytest
import torch
from torch import nn

from benchmarks.lstm import LstmCell
from smt_ray.config import ModelConfig
from smt_ray.config.model import CELLS as KINDS
from smt_ray.model.blocks import rms_norm
from smt_ray.model.cells import CELLS, GruCell, TransformerCell, build_cell
from smt_ray.model.rnn import RNN
from tests.samples import VOCABULARY, random_weights

K, D, N = 4, 8, 20
LSTM = "benchmarks.lstm:LstmCell"
EVERY = [*sorted(CELLS), LSTM]


def config(cell, depth=2):
    return ModelConfig(width=D, memory_tokens=K, heads=2, cell=cell, cell_depth=depth)


def memories():
    return rms_norm(torch.randn(N, K, D))


def tokens():
    return torch.randint(VOCABULARY, (N,))


def test_the_configuration_names_all_kinds():
    assert set(KINDS) == set(CELLS)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_updates_a_memory(kind, depth):
    cell = random_weights(build_cell(config(kind, depth), VOCABULARY)).requires_grad_(False)
    memory, token = memories(), tokens()
    after = cell(memory, token)
    assert after.shape == (N, K, D)
    if kind in CELLS:
        torch.testing.assert_close(after.square().mean(-1), torch.ones(N, K), atol=1e-4, rtol=0)
    # Both the memory and the token matter, in every row; rows do not see each other.
    other_token = cell(memory, (token + 1) % VOCABULARY)
    other_memory = cell(rms_norm(memory + torch.randn(N, K, D)), token)
    for other in (other_token, other_memory):
        assert (after - other).abs().amax((1, 2)).min() > 1e-4
    alone = torch.cat([cell(m[None], t[None]) for m, t in zip(memory, token, strict=True)])
    torch.testing.assert_close(after, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_starts_from_the_empty_memory(kind):
    cell = random_weights(build_cell(config(kind), VOCABULARY))
    after = cell(torch.zeros(VOCABULARY, K, D), torch.arange(VOCABULARY))
    assert after.isfinite().all()
    assert torch.pdist(after.flatten(1)).min() > 1e-3


@pytest.mark.parametrize("kind", EVERY)
def test_fresh_weights_of_every_kind_can_be_unrolled(kind):
    """From the empty memory, too: of a norm that gets zeros at each step no gradient is bounded."""
    rnn = RNN(config(kind), VOCABULARY)
    last = rnn.rollout(torch.randint(VOCABULARY, (N, 64)))[:, -1]
    loss = (last * torch.randn(N, K, D)).sum()
    gradients = torch.autograd.grad(loss, list(rnn.cell.parameters()))
    norms = torch.stack([gradient.norm() for gradient in gradients])
    assert norms.isfinite().all()
    assert norms.max() < 1e4


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gru_equals_torch_on_the_scaled_memory(scale):
    cell = random_weights(GruCell(config("gru"), VOCABULARY)).requires_grad_(False)
    cell.scale.fill_(scale)
    reference = nn.GRUCell(D, K * D).requires_grad_(False)
    reference.load_state_dict(cell.gru.state_dict())
    memory, token = memories(), tokens()
    state = reference(cell.embed.weight[token], scale * memory.reshape(N, K * D)).view(N, K, D)
    torch.testing.assert_close(cell(memory, token), rms_norm(state), atol=1e-5, rtol=1e-5)


def test_gru_keeps_and_writes_memories_beyond_what_tanh_reaches():
    """With its update gate between the two: half of each, in the units of normalised memories."""
    cell = GruCell(config("gru"), VOCABULARY).requires_grad_(False)
    kept, written = memories(), memories()[:1]
    assert kept.abs().amax() > 2
    for parameter in cell.gru.parameters():
        parameter.zero_()
    cell.scale.fill_(0.25)
    third = 2 * K * D  # of the biases: reset, update, candidate
    cell.gru.bias_ih[third:] = torch.atanh(0.25 * written.flatten())
    expected = rms_norm(0.25 * (kept + written) / 2)
    torch.testing.assert_close(cell(kept, tokens()), expected, atol=1e-5, rtol=1e-5)


def test_lstm_equals_torch_in_the_two_halves_of_the_memory():
    cell = random_weights(LstmCell(config(LSTM), VOCABULARY)).requires_grad_(False)
    reference = nn.LSTMCell(D, K // 2 * D).requires_grad_(False)
    reference.load_state_dict(cell.lstm.state_dict())
    state = (torch.zeros(N, K // 2 * D), torch.zeros(N, K // 2 * D))
    memory = torch.zeros(N, K, D)
    for _ in range(5):
        token = tokens()
        state, memory = reference(cell.embed.weight[token], state), cell(memory, token)
        hidden, carried = memory.split(K // 2, dim=1)
        assert torch.equal(hidden.flatten(1), state[0])
        assert torch.equal(carried.flatten(1), state[1])
    assert memory.square().mean(-1).std() > 0.01


def test_lstm_starts_with_open_forget_gates():
    cell = LstmCell(config(LSTM), VOCABULARY).requires_grad_(False)
    memory = torch.randn(N, K, D)
    cell.embed.weight.zero_()
    memory[:, : K // 2] = 0
    bias = cell.lstm.bias_ih + cell.lstm.bias_hh
    given, forget, new, _ = bias.chunk(4)
    expected = torch.sigmoid(forget) * memory[:, K // 2 :].flatten(1)
    expected += torch.sigmoid(given) * torch.tanh(new)
    assert (torch.sigmoid(forget) > 0.6).all()
    found = cell(memory, tokens())[:, K // 2 :].flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def gated():
    plain = random_weights(TransformerCell(config("transformer"), VOCABULARY))
    cell = TransformerCell(config("gated"), VOCABULARY)
    cell.load_state_dict(plain.state_dict(), strict=False)
    return plain.requires_grad_(False), cell.requires_grad_(False)


@pytest.mark.parametrize("memory", [memories, lambda: torch.zeros(N, K, D)], ids=["any", "empty"])
def test_a_write_gate_keeps_or_writes_each_memory_token(memory):
    plain, cell = gated()
    old, token = memory(), tokens()
    cell.gate.open[:] = torch.tensor([30.0, -30.0, 30.0, -30.0])[:, None]
    after, written = cell(old, token), plain(old, token)
    for slot in range(K):
        expected = old[:, slot] if slot % 2 else written[:, slot]
        torch.testing.assert_close(after[:, slot], expected, atol=1e-5, rtol=0)


def test_a_write_gate_looks_at_what_it_writes():
    _, cell = gated()
    cell.gate.see.weight.normal_()
    shares = []
    cell.gate.see.register_forward_hook(lambda *call: shares.append(call[2]))
    cell(memories(), tokens())
    assert shares[0].shape == (N, K, 1)
    assert shares[0].std(0).min() > 0.1


def test_a_fresh_write_gate_is_mostly_open():
    plain, cell = gated()
    memory, token = memories(), tokens()
    before, after = plain(memory, token), cell(memory, token)
    share = (after - before).square().mean() / (memory - before).square().mean()
    assert 0 < share < 0.05


class Mixer(nn.Module):
    """A user's own kind of cell."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.width)
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, memory, token):
        return rms_norm(torch.tanh(self.mix(memory)) + self.embed(token)[:, None])


def test_a_class_of_the_user_makes_an_rnn():
    rnn = RNN(config(f"{__name__}:Mixer"), VOCABULARY)
    assert isinstance(rnn.cell, Mixer)
    assert rnn.rollout(torch.randint(VOCABULARY, (2, 5))).shape == (2, 5, K, D)
    assert len(list(rnn.generate(torch.tensor([1, 2]), 4))) == 4


def test_a_class_of_the_user_is_imported_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "fresh_cells.py").write_text(
        "from torch import nn\nclass Cell(nn.Identity): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(build_cell(config("fresh_cells:Cell"), VOCABULARY)).__name__ == "Cell"
    del sys.modules["fresh_cells"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Cell", "No module named 'no_such_module'.* must be importable"),
        ("torch.nn:NoSuch", "torch.nn has no such class; name a torch.nn.Module class"),
        ("torch:Tensor", "torch holds no torch.nn.Module by that name"),
        ("os:system", "os holds no torch.nn.Module"),
    ],
)
def test_a_class_that_is_not_there_is_refused(name, message):
    with pytest.raises(ValueError, match=rf"^model\.cell='{name}': [^\n]*{message}[^\n]*$"):
        build_cell(config(name), VOCABULARY)


@pytest.mark.parametrize("name", ["rnn", "my cells:Cell", ":Cell", "cells:", "..cells:C", "a:b:c"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(
        ValueError, match=r"^model\.cell=[^\n]*: must be one of [^\n]*module:Class$"
    ):
        config(name)
