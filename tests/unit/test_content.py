"""Content decides: what a source or tokenizer holds makes tokens anew, and nothing else does."""

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smt_ray.config import DataConfig, RunConfig
from smt_ray.data import content, pieces, sources
from smt_ray.data.export import save_rnn
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.model.rnn import RNN
from smt_ray.pipeline.stages import fingerprints
from tests.samples import MODEL


def mark(config):
    return fingerprints(RunConfig(data=config))["tokens"]


def rewrite(file: Path, before: bytes, after: bytes):
    """Change bytes of a file; its size and time stay."""
    state = file.stat()
    whole = file.read_bytes()
    assert before in whole
    assert len(before) == len(after)
    file.write_bytes(whole.replace(before, after, 1))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def text(place, words):
    place.write_text(f"{words}\n" * 100)


def rows(place, words):
    pq.write_table(pa.table({"text": [words] * 100}), place, compression="none")


def numbers(place, words):
    np.save(place, np.frombuffer(words.encode() * 100, np.uint8))


def images(place, words):
    held = np.frombuffer((words * 100).encode()[:800], np.uint8)
    place.write_bytes(struct.pack(">IIII", 0x803, 50, 4, 4) + held.tobytes())


def packed(place, words):
    place.write_bytes(gzip.compress(f"{words}\n".encode() * 100, compresslevel=0, mtime=0))


@pytest.mark.parametrize(
    ("name", "write", "prefix"),
    [
        ("a.txt", text, ""),
        ("a.txt.gz", packed, ""),
        ("a.parquet", rows, ""),
        ("a.npy", numbers, ""),
        ("images", images, "pixels:"),
        ("set/train.parquet", rows, "hf:"),
    ],
)
def test_a_rewrite_of_equal_length_is_another_source(tmp_path, name, write, prefix):
    file = tmp_path / "source" / name
    file.parent.mkdir(parents=True)
    write(file, "old words")
    place = file.parent if prefix == "hf:" else file
    config = DataConfig(source=f"{prefix}{place}", sequence_length=16)
    before = mark(config)
    os.utime(file, ns=(0, 0))
    assert mark(config) == before
    if name == "a.txt.gz":
        write(file, "new words")
    else:
        rewrite(file, b"old words", b"new words")
    assert mark(config) != before
    write(file, "old words")
    assert mark(config) == before
    sibling = file.parent / ("more.parquet" if prefix == "hf:" else ".hidden.txt")
    shutil.copy(file, sibling)
    assert (mark(config) == before) == (prefix != "hf:")


@pytest.mark.parametrize("place", [0, 1 << 20, -1])
def test_of_big_files_samples_and_the_time_count(tmp_path, place):
    file = tmp_path / "big.txt"
    size = content.WHOLE * 3
    file.write_bytes(b"x" * size)
    state = file.stat()
    config = DataConfig(source=str(file))
    before = mark(config)
    with file.open("r+b") as handle:
        handle.seek(place if place >= 0 else size + place)
        handle.write(b"y")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert mark(config) != before
    file.write_bytes(b"x" * size)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert mark(config) == before
    os.utime(file, ns=(0, 0))
    assert mark(config) != before


def test_a_tokenizer_counts_by_its_content_not_by_its_path(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"}
    spec = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "t.json").write_text(json.dumps(spec))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tokenizer.json").write_text(json.dumps(spec, indent=1))
    text(tmp_path / "a.txt", "a b c")
    config, other = (
        DataConfig(source=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / name))
        for name in ("t.json", "folder")
    )
    before = mark(config)
    assert mark(other) == before != mark(DataConfig(source=config.source))
    rewrite(tmp_path / "t.json", b'"b": 1, "c": 2', b'"b": 2, "c": 1')
    assert mark(config) != before
    rnn = RNN(MODEL, 256)
    save_rnn(rnn, Location.of(tmp_path / "rnn"), load_tokenizer("bytes"))
    plain = DataConfig(source=config.source)
    assert mark(DataConfig(source=config.source, tokenizer=str(tmp_path / "rnn"))) == mark(plain)


def test_only_the_units_of_a_corrected_file_are_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1000)
    for name in "abcdef":
        text(tmp_path / f"{name}.txt", f"{name} old words")
    config = DataConfig(source=str(tmp_path), validation_fraction=0.2)

    def marks():
        units = [unit for group in sources.plan(config).values() for unit in group]
        found = sources.unit_marks(config, units, sources.load_tokenizer_of(config))
        assert len(set(found)) == len(found)
        names = [{Path(piece.path).stem for piece in unit.pieces} for unit in units]
        return found, names

    before, names = marks()
    rewrite(tmp_path / "c.txt", b"c old words", b"c new words")
    after, _ = marks()
    changed = [old != new for old, new in zip(before, after, strict=True)]
    assert changed == ["c" in held for held in names]
    assert 0 < sum(changed) < len(changed) / 2
