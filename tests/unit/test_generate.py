"""Exported RNNs at work: text that streams from one, scores of one, and what bad input gets."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from jobs.generate import GenerateOptions
from smt_ray import load_rnn
from smt_ray.config import DataConfig
from smt_ray.data.export import ExportedRNN, save_rnn
from smt_ray.data.source_plan import plan_source
from smt_ray.data.sources import read
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import ByteTokenizer, load_tokenizer
from smt_ray.evaluation.standalone import score_source, with_tokenizer_of
from smt_ray.pipeline.command_line import parse
from tests.samples import MODEL, random_weights

ROOT = Path(__file__).parents[2]
TEXTS = [f"Document {n}: caf\u00e9 and \U0001f40d, line {n * n}.\n" for n in range(40)]


def export(directory, vocabulary=256):
    """Write an RNN with random weights."""
    rnn = random_weights(ExportedRNN(MODEL, vocabulary, ByteTokenizer()))
    save_rnn(rnn, Location.of(directory), rnn.tokenizer)
    return directory


@pytest.fixture
def model(tmp_path):
    return export(tmp_path / "rnn")


def job(name, *arguments, **options):
    command = [sys.executable, f"jobs/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def refused(result):
    """Return the one line that a refused command wrote."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def test_text_is_written_as_it_comes_until_the_reader_has_enough(model):
    arguments = ("--model", model, "--prompt", "def ", "--length", 10**9)
    command = [sys.executable, "jobs/generate.py", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(500)
        memory = psutil.Process(process.pid).memory_info().rss
        assert process.stdout.read(5_000)
        assert process.poll() is None
        assert psutil.Process(process.pid).memory_info().rss < memory + (2 << 20)
        process.stdout.close()
        assert process.wait(60) == -signal.SIGPIPE
        assert process.stderr.read() == b""


def test_the_command_writes_what_the_model_writes(model):
    arguments = ("--model", model, "--prompt", "caf\u00e9 ", "--temperature", 2.0, "--seed", 5)
    written = job("generate", *arguments, "--length", 60)
    random = torch.Generator().manual_seed(5)
    pieces = load_rnn(model).write("caf\u00e9 ", 60, temperature=2.0, generator=random)
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout.splitlines() == ("".join(pieces) + "\n").splitlines()


def backend(kind):
    """Train a tokenizer that joins words in its own way."""
    trainer: Any
    match kind:
        case "byte-level":
            made = Backend(models.BPE())
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
        case "metaspace":
            made = Backend(models.BPE(byte_fallback=True))
            made.pre_tokenizer = pre_tokenizers.Metaspace()
            made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
            alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
            trainer = trainers.BpeTrainer(
                vocab_size=330, special_tokens=alphabet, limit_alphabet=40
            )
        case _:
            made = Backend(models.WordPiece(unk_token="[UNK]"))
            made.pre_tokenizer = pre_tokenizers.Whitespace()
            made.decoder = decoders.WordPiece()
            trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"])
    trainer.show_progress = False
    made.train_from_iterator(TEXTS, trainer)
    return made


class Parrot(ExportedRNN):
    """Generates the tokens of its prompt."""

    def generate(self, prompt, length, **_):
        yield from prompt.tolist()


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "metaspace", "word-piece"])
def test_pieces_are_whole_characters_and_join_to_the_text(tmp_path, kind):
    if kind != "bytes":
        backend(kind).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer("bytes" if kind == "bytes" else str(tmp_path / "tokenizer.json"))
    text = "".join(TEXTS)
    pieces = list(Parrot(MODEL, tokenizer.vocabulary, tokenizer).write(text, 0))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
    assert "\ufffd" not in "".join(pieces)
    assert "caf\u00e9 and" in "".join(pieces)
    assert len(pieces) > len(text) / 8


class BrokenBytes(ByteTokenizer):
    """Gives the same bytes for any text: some of them begin a character that does not end."""

    def encode(self, text):
        return np.array([0x61, 0xF0, 0x9F, 0xE2, 0x82, 0x62, 0xFF], np.int32)


def test_bad_bytes_stream_too():
    rnn = Parrot(MODEL, 256, BrokenBytes())
    assert re.fullmatch("a\ufffd+b\ufffd", "".join(rnn.write("", 0)))


@pytest.mark.parametrize("kind", ["bytes", "byte-level"])
def test_a_prompt_that_is_no_utf8_is_written_on(tmp_path, kind):
    if kind == "bytes":
        model = export(tmp_path / "rnn")
    else:
        backend(kind).save(str(tmp_path / "tokenizer.json"))
        tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
        rnn = random_weights(ExportedRNN(MODEL, tokenizer.vocabulary, tokenizer))
        save_rnn(rnn, Location.of(model := tmp_path / "rnn"), tokenizer)
    prompt = os.fsdecode(b"a \xff")
    written = job("generate", "--model", model, "--prompt", prompt, "--length", 20)
    assert (written.returncode, written.stderr) == (0, "")
    replaced = job("generate", "--model", model, "--prompt", "a ?", "--length", 20)
    assert written.stdout == replaced.stdout != ""


def test_a_terminal_that_knows_fewer_characters_gets_the_others_replaced(model):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    arguments = ("--model", model, "--prompt", "x", "--length", 200, "--temperature", 5.0)
    written = job("generate", *arguments, env=environment)
    assert (written.returncode, written.stderr) == (0, "")
    assert "?" in written.stdout


def test_a_path_without_a_model_is_refused(tmp_path, model):
    message = refused(job("generate", "--model", tmp_path, "--prompt", "x"))
    assert f"model={tmp_path}: no config.json here; give the `rnn` directory of a run" in message
    message = refused(job("evaluate", "--model", tmp_path / "nowhere"))
    assert "nowhere: no config.json here" in message


def test_an_empty_prompt_and_a_foreign_token_are_refused(tmp_path, model):
    assert "prompt='': must hold" in refused(job("generate", "--model", model, "--prompt="))
    small = export(tmp_path / "small", vocabulary=100)
    message = refused(job("generate", "--model", small, "--prompt", "caf\u00e9"))
    assert "prompt=102: not a token of 0..99" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x"], "missing: --model"),
        (["--model", "x", "--prompt", "x", "--length", "-1"], "length=-1: must be >= 0"),
        (["--model", "x", "--prompt", "x", "--lenght", "1"], "--lenght: .* did you mean --length"),
    ],
)
def test_bad_flags_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(GenerateOptions, arguments, "Test.")


def damage(file, content):
    file.write_bytes(content if content is not None else file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "model.safetensors is truncated or of another kind"),
        ("model.safetensors", b"", "model.safetensors is truncated or of another kind"),
        ("config.json", b'{"format": 1', "config.json is truncated or of another kind"),
        ("config.json", b"[]", "config.json is not of format 1"),
        ("config.json", b'{"model_type": "gpt2"}', "config.json is not of format 1"),
        ("config.json", b'{"format": 1}', "do not fit each other"),
        ("config.json", b'{"format": 1, "vocabulary": 9, "model": {}}', "do not fit each other"),
        ("tokenizer.json", b"{}", "data.tokenizer=.*not a Hugging Face tokenizers JSON"),
    ],
)
def test_a_damaged_model_is_named(model, name, content, message):
    damage(model / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_rnn(model)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


ALONE = """
import importlib.metadata, re, sys

own = {"torch", "numpy", "safetensors", "einops", "jaxtyping"}
names = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
for line in importlib.metadata.requires("smt-ray"):
    name = re.match(r"[\\w-]+", line)[0]
    if name not in own:
        sys.modules[names.get(name, name)] = None  # to import it fails

import smt_ray

rnn = smt_ray.load_rnn(sys.argv[1])
print(len("".join(rnn.write("To be", 3))))
"""


def test_a_model_loads_with_torch_and_few_small_libraries(model):
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(model)], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0


def test_a_model_without_weights_is_refused(model):
    os.remove(model / "model.safetensors")
    with pytest.raises(ValueError, match=r"no model\.safetensors here"):
        load_rnn(model)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "texts").mkdir()
    for n in range(6):
        (tmp_path / "texts" / f"{n}.txt").write_text("".join(TEXTS[n::6]))
    return DataConfig(source=str(tmp_path / "texts"), sequence_length=12, validation_fraction=0.4)


def plain_bits(rnn, source):
    """Score every validation window byte by byte, in a plain loop."""
    bits, covered, count = 0.0, 0, 0
    for unit in plan_source(source).split("validation"):
        stream = b"\0".join(cast(bytes, text) for text in read(unit, source, rnn.tokenizer))
        for start in range(0, len(stream) - 12, 12):
            memory, window = rnn.initial(1), stream[start : start + 13]
            for token, target in itertools.pairwise(window):
                memory = rnn.step(memory, torch.tensor([token]))
                bits -= float(torch.log_softmax(rnn.logits(memory)[0].double(), -1)[target])
            covered += sum(byte != 0 for byte in window[1:])
            count += 1
    return bits / np.log(2) / covered, covered, count


def test_scores_are_those_of_a_plain_loop(model, source, monkeypatch):
    rnn = load_rnn(model)
    with torch.inference_mode():
        bits, covered, count = plain_bits(rnn, source)
    monkeypatch.setattr(
        "smt_ray.evaluation.budget.CPU_BYTES", 64 * 12 * MODEL.memory_tokens * MODEL.width * 5
    )
    monkeypatch.setattr("smt_ray.evaluation.standalone.ROWS", 4)
    figures = score_source(rnn, source, 10_000)
    assert figures["rnn_bits"] == pytest.approx(bits, rel=1e-6)
    assert (figures["bytes"], figures["sequences"]) == (covered, count)
    assert 8 > figures["order0_bits"] > figures["order1_bits"] > figures["order2_bits"] > 0
    assert figures["rnn_tokens_per_s"] > 0
    some = [score_source(rnn, source, 7) for _ in range(2)]
    assert [figures["sequences"] for figures in some] == [7, 7]
    assert some[0]["rnn_bits"] == some[1]["rnn_bits"] != figures["rnn_bits"]


def test_the_command_prints_a_table_and_writes_json(model, source, tmp_path):
    data = ("--data.source", source.source, "--data.sequence-length", 12)
    result = job("evaluate", "--model", model, *data, "--json", tmp_path / "scores.json")
    assert (result.returncode, result.stderr) == (0, "")
    figures = json.loads((tmp_path / "scores.json").read_text())
    assert figures["name"] == str(model)
    for name in ("rnn", "order0", "order1", "order2"):
        assert f" {figures[f'{name}_bits']:.3f} " in result.stdout


def test_bad_sources_of_a_score_are_refused(model, tmp_path):
    message = refused(job("evaluate", "--model", model, "--data.source", tmp_path / "none.txt"))
    assert re.match(r"error: data\.source='.*none\.txt': no .* file is there", message)
    with pytest.raises(ValueError, match=r"data\.tokenizer='other.json': the model brings its own"):
        with_tokenizer_of(str(model), DataConfig(tokenizer="other.json"))
