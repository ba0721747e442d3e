"""What makes tokens anew: another version of a file, another tokenizer; and what later stages see.

A file's version is its size and the time of its last change. Later stages know the tokens by a
digest of their rows, so a file that was only touched costs the tokens alone.
"""

import gzip
import json
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smt_ray.config import DataConfig, RunConfig
from smt_ray.data import pieces, sources, tokens
from smt_ray.data.content import versions
from smt_ray.data.export import save_rnn
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.data.units import UNITS
from smt_ray.model.rnn import RNN
from smt_ray.pipeline.stages import fingerprints
from tests.samples import MODEL

LONG_AGO = 10**18
"""A time in nanoseconds."""


def age(*files: Path):
    """Let files be written long ago: the clock of a file system may not tell two writes apart."""
    for file in files:
        os.utime(file, ns=(LONG_AGO, LONG_AGO))


def rewrite(file: Path, before: bytes, after: bytes):
    """Change bytes of a file; its size stays."""
    whole = file.read_bytes()
    assert before in whole
    assert len(before) == len(after)
    file.write_bytes(whole.replace(before, after, 1))


def fingerprint(config):
    return plan_source(config).fingerprint


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
    age(file)
    place = file.parent if prefix == "hf:" else file
    config = DataConfig(source=f"{prefix}{place}", sequence_length=16)
    before, size = fingerprint(config), file.stat().st_size
    assert fingerprint(config) == before
    write(file, "new words")
    assert file.stat().st_size == size
    assert fingerprint(config) != before
    write(file, "old words")
    age(file)
    assert fingerprint(config) == before
    sibling = file.parent / ("more.parquet" if prefix == "hf:" else ".hidden.txt")
    shutil.copy(file, sibling)
    assert (fingerprint(config) == before) == (prefix != "hf:")


def test_a_version_is_the_size_and_the_time_of_a_file(tmp_path):
    files = [tmp_path / name for name in ("same", "touched", "longer")]
    for file in files:
        file.write_text("a text")
    age(*files)
    found = [Location.of(file) for file in files]
    before = versions(found)
    os.utime(files[1], ns=(LONG_AGO, LONG_AGO + 1))
    files[2].write_text("a longer text")
    age(files[2])
    assert [old == new for old, new in zip(before, versions(found), strict=True)] == [
        True, False, False,
    ]  # fmt: skip
    assert versions([]) == []
    files[0].unlink()
    with pytest.raises(FileNotFoundError, match="same: no such file"):
        versions(found)


def made(config, target):
    """Write a source's tokens in this process, as the tasks of Ray Data do; return their digest."""
    plan, target = plan_source(config), Location.of(target)
    for folder in (UNITS, *sources.SPLITS):
        (target / folder).make_dir()
    work = tokens.Work(plan.config, plan.tokenizer, target)
    tasks = map(tokens.UnitTask, plan.units, plan.unit_fingerprints)
    records = [pickle.loads(work.explained(task)["record"]) for task in tasks]
    for split in sources.SPLITS:
        own = [record for record in records if record.split == split]
        tokens._write_manifest(plan, own, target / split)
    (target / UNITS).delete_dir()
    return tokens.write_tokens(plan, target)["digest"]


def test_a_touched_file_costs_the_tokens_and_no_later_stage(tmp_path):
    files = [tmp_path / "source" / f"{name}.txt" for name in "ab"]
    files[0].parent.mkdir()
    for file in files:
        text(file, f"{file.stem} old words")
    age(*files)
    data = DataConfig(source=str(tmp_path / "source"), sequence_length=16)

    def known(name):
        """Return the fingerprints before there are tokens, and those with the tokens' digest."""
        source, run = fingerprint(data), RunConfig(data=data)
        digest = made(data, tmp_path / name)
        return fingerprints(run, source), fingerprints(run, source, digest)

    expected, before = known("before")
    assert expected["tokens"] == before["tokens"]
    assert all(expected[stage] != before[stage] for stage in before if stage != "tokens")
    os.utime(files[0], ns=(LONG_AGO, LONG_AGO + 1))
    _, touched = known("touched")
    assert [stage for stage in before if touched[stage] != before[stage]] == ["tokens"]
    rewrite(files[0], b"old words", b"new words")
    _, rewritten = known("rewritten")
    assert all(rewritten[stage] != touched[stage] for stage in touched)


def test_a_tokenizer_counts_by_its_content_not_by_its_path(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"}
    spec = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "t.json").write_text(json.dumps(spec))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tokenizer.json").write_text(json.dumps(spec, indent=1))
    text(tmp_path / "a.txt", "a b c")
    bare = DataConfig(source=str(tmp_path / "a.txt"), sequence_length=16)
    config, other, exported = (
        replace(bare, tokenizer=str(tmp_path / name)) for name in ("t.json", "folder", "rnn")
    )
    plain, before = fingerprint(bare), fingerprint(config)
    assert fingerprint(other) == before != plain
    os.utime(tmp_path / "t.json", ns=(LONG_AGO, LONG_AGO))
    assert fingerprint(config) == before
    rewrite(tmp_path / "t.json", b'"b": 1, "c": 2', b'"b": 2, "c": 1')
    assert fingerprint(config) != before
    save_rnn(RNN(MODEL, 256), Location.of(tmp_path / "rnn"), load_tokenizer("bytes"))
    assert fingerprint(exported) == plain


def test_only_the_units_of_a_corrected_file_are_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1000)
    for name in "abcdef":
        text(tmp_path / f"{name}.txt", f"{name} old words")
        age(tmp_path / f"{name}.txt")
    config = DataConfig(source=str(tmp_path), validation_fraction=0.2)
    before = plan_source(config)
    rewrite(tmp_path / "c.txt", b"c old words", b"c new words")
    after = plan_source(config)
    assert before.units == after.units
    assert len(set(before.unit_fingerprints)) == len(before.units)
    names = [{Path(piece.path).stem for piece in unit.pieces} for unit in before.units]
    pairs = zip(before.unit_fingerprints, after.unit_fingerprints, strict=True)
    changed = [old != new for old, new in pairs]
    assert changed == ["c" in held for held in names]
    assert 0 < sum(changed) < len(changed) / 2
