"""The standalone RNN: rollout, sampling, and its files."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from smt_ray.data.export import ExportedRNN, load_rnn, save_rnn
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import ByteTokenizer
from smt_ray.model.blocks import rms_norm
from smt_ray.model.rnn import RNN
from tests.samples import MODEL, VOCABULARY, random_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rnn():
    return random_weights(RNN(MODEL, VOCABULARY)).requires_grad_(False)


def test_rollout_is_a_loop_of_steps_from_the_empty_memory(rnn):
    tokens = torch.randint(VOCABULARY, (3, 9))
    memories = rnn.rollout(tokens)
    memory = torch.zeros(3, MODEL.memory_tokens, MODEL.width)
    for t in range(9):
        memory = rnn.cell(memory, tokens[:, t])
        assert torch.equal(memories[:, t], memory)


CELLS = ["transformer", "gated", "mlp", "gru", "benchmarks.lstm:LstmCell"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 0.2), (torch.float16, 0.02), (torch.float64, 1e-4)],
)
def test_an_rnn_runs_in_the_dtype_of_its_weights(cell, dtype, tolerance):
    model = dataclasses.replace(MODEL, cell=cell)
    rnn = random_weights(ExportedRNN(model, 256, ByteTokenizer())).requires_grad_(False)
    tokens = torch.randint(256, (3, 5))
    exact = rnn.rollout(tokens)
    logits = rnn.logits(exact[:, -1])
    rnn.to(dtype)
    assert rnn.initial(2).dtype == dtype
    memories = rnn.rollout(tokens)
    assert memories.dtype == rnn.step(rnn.initial(3), tokens[:, 0]).dtype == dtype
    assert (memories.float() - exact).abs().mean() < tolerance
    assert (rnn.logits(memories[:, -1]).float() - logits).abs().mean() < tolerance * logits.std()
    assert len(list(rnn.generate(tokens[0], 4))) == 4
    assert "".join(rnn.write("so", 4))


def test_a_generator_decides_the_sample(rnn):
    prompt = torch.tensor([1, 2, 3])

    def sample(seed):
        return list(rnn.generate(prompt, 50, generator=torch.Generator().manual_seed(seed)))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert set(sample(1)) <= set(range(VOCABULARY))


def test_temperature_zero_takes_the_likeliest_token(rnn):
    tokens = [4, 7]
    for token in rnn.generate(torch.tensor(tokens), 20, temperature=0.0):
        memory = rnn.rollout(torch.tensor([tokens]))[:, -1]
        assert token == int(rnn.logits(memory).argmax())
        tokens.append(token)
    assert len(tokens) == 22


def test_samples_follow_the_softmax(rnn):
    memory = rnn.rollout(torch.tensor([[5, 6]]))[:, -1]
    expected = torch.softmax(rnn.logits(memory)[0] / 0.8, dim=-1)
    random = torch.Generator().manual_seed(0)
    draws = [
        next(rnn.generate(torch.tensor([5, 6]), 1, temperature=0.8, generator=random))
        for _ in range(800)
    ]
    found = torch.bincount(torch.tensor(draws), minlength=VOCABULARY) / 800
    assert (found - expected).abs().max() < 4 * 0.5 / 800**0.5


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "must hold at least one token"),
        ([3, 11], r"not a token of 0\.\.10"),
        ([-1], r"not a token of 0\.\.10"),
    ],
)
def test_a_bad_prompt_is_refused(rnn, prompt, message):
    with pytest.raises(ValueError, match=f"^prompt.*{message}$"):
        next(rnn.generate(torch.tensor(prompt, dtype=torch.long), 1))


@pytest.fixture
def exported(tmp_path):
    rnn = random_weights(RNN(MODEL, 256)).requires_grad_(False)
    save_rnn(rnn, Location.of(tmp_path / "rnn"), ByteTokenizer())
    return rnn, tmp_path / "rnn"


def test_saved_and_loaded_bitwise(exported):
    rnn, path = exported
    loaded = load_rnn(path)
    assert loaded.config == rnn.config
    assert not loaded.training
    weights, found = rnn.state_dict(), loaded.state_dict()
    assert list(weights) == list(found)
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    tokens = torch.randint(256, (2, 7))
    loaded.requires_grad_(False)  # as `rnn`: torch may choose other kernels
    assert torch.equal(rnn.rollout(tokens), loaded.rollout(tokens))


class Parrot(ExportedRNN):
    """Samples its prompt, again and again."""

    def generate(self, prompt, length, **settings):
        yield from itertools.islice(itertools.cycle(prompt.tolist()), length)


def test_sampled_text_comes_in_whole_characters():
    text = "Caf\u00e9 \u03bb \u20ac \U0001f40d."
    parrot = Parrot(MODEL, 256, ByteTokenizer())
    pieces = list(parrot.write(text, 3 * len(text.encode())))
    assert "".join(pieces) == 3 * text
    assert all(len(piece) == 1 for piece in pieces)
    cut = "".join(parrot.write("\U0001f40d", 6))
    assert cut == "\U0001f40d\ufffd"


def test_a_place_without_a_model_is_refused(exported, tmp_path):
    with pytest.raises(ValueError, match=r"^model=.*no config\.json here; give [^\n]*$"):
        load_rnn(tmp_path)
    config = exported[1] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match=r"^model=[^\n]*format[^\n]* 1\b[^\n]*$"):
        load_rnn(exported[1])


class Copier(nn.Module):
    """A user's cell."""

    def __init__(self, config, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.width)

    def forward(self, memory, token):
        return rms_norm(memory + self.embed(token)[:, None])


def test_a_users_cell_is_loaded_but_never_imported(tmp_path):
    model = dataclasses.replace(MODEL, cell=f"{__name__}:Copier")
    rnn = random_weights(RNN(model, 256)).requires_grad_(False)
    save_rnn(rnn, Location.of(tmp_path), ByteTokenizer())
    loaded, tokens = load_rnn(tmp_path).requires_grad_(False), torch.randint(256, (2, 7))
    assert isinstance(loaded.cell, Copier)
    assert torch.equal(loaded.rollout(tokens), rnn.rollout(tokens))
    config = tmp_path / "config.json"
    named = config.read_text().replace(__name__, "antigravity")  # opens a browser if imported
    config.write_text(named)
    with pytest.raises(
        ValueError, match=r"^model=[^\n]*antigravity:Copier[^\n]*; give cell-module="
    ):
        load_rnn(tmp_path)
    assert "antigravity" not in sys.modules
    with pytest.raises(ValueError, match=r"^cell-module=absent: No module named 'absent'; set "):
        load_rnn(tmp_path, cell_module="absent")


def test_a_users_cell_is_imported_where_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "own_cells.py").write_text("from tests.unit.test_rnn import Copier\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = dataclasses.replace(MODEL, cell="own_cells:Copier")
    save_rnn(RNN(model, 256), Location.of(tmp_path), ByteTokenizer())
    del sys.modules["own_cells"]
    assert load_rnn(tmp_path, cell_module="own_cells").config == model


def test_loading_needs_no_ray_and_unpickles_nothing(exported):
    script = """
import sys
import torch
from smt_ray import load_rnn

def refuse(event, arguments):
    assert not event.startswith("pickle."), arguments

sys.addaudithook(refuse)
rnn = load_rnn(sys.argv[1])
print(*rnn.generate(torch.tensor([65]), 3, temperature=0.0))
print(*{name.partition(".")[0] for name in sys.modules} & {"ray", "deepspeed"})
"""
    command = [sys.executable, "-c", script, str(exported[1])]
    said = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    expected = exported[0].generate(torch.tensor([65]), 3, temperature=0.0)
    assert said == [" ".join(map(str, expected)), ""]
