"""Files as users have them: hidden ones, links, encodings, compression, bad rows, odd names."""

import codecs
import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smt_ray.config import DataConfig
from smt_ray.data import pieces, sources
from smt_ray.data.source_plan import plan_source
from smt_ray.data.tokenizers import ByteTokenizer

LINES = [f"line {n}: caf\u00e9\n" for n in range(400)]


def documents(source, **fields):
    """Return all documents of each split."""
    plan = plan_source(DataConfig(source=str(source), sequence_length=2, **fields))
    return {
        split: [
            text
            for unit in plan.split(split)
            for text in sources.read(unit, plan.config, ByteTokenizer())
        ]
        for split in sources.SPLITS
    }


def joined(source, **fields):
    found = documents(source, **fields)
    return sorted(found["train"] + found["validation"])


def refused(source, **fields):
    """Return the one line with which a source is refused."""
    with pytest.raises(sources.SourceError) as caught:
        documents(source, **fields)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"data.source={str(source)!r}: ")
    return str(caught.value).partition(": ")[2]


def pack(content, codec):
    return pa.compress(content, codec, asbytes=True) if codec == "zstd" else gzip.compress(content)


@pytest.fixture
def tree(tmp_path):
    names = (
        "a.txt", "sub/b.txt", ".ipynb_checkpoints/a-checkpoint.txt", "._a.txt", ".c.txt",
        "__MACOSX/a.txt", "_temporary/0/part.txt", "_mine.txt",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_names_that_begin_with_a_dot_are_data_only_if_the_glob_says_so(tree):
    seen = [b"_mine.txt", b"a.txt", b"sub/b.txt"]
    assert joined(tree) == joined(f"{tree}/**/*.txt") == joined(tree.as_uri()) == seen
    assert joined(f"{tree}/*.txt") == [b"_mine.txt", b"a.txt"]
    assert joined(f"{tree}/.*.txt") == [b"._a.txt", b".c.txt"]
    assert joined(f"{tree}/.ipynb_checkpoints/*.txt", validation_fraction=0.5)[0]
    assert joined(f"{tree}/**/.ipynb*/*.txt", validation_fraction=0.5)[0]
    hidden = tree / ".hidden"
    (tree / "sub").rename(hidden)
    (hidden / "d.txt").write_text("d.txt")
    assert joined(hidden) == [b"d.txt", b"sub/b.txt"]


def test_rings_of_links_are_walked_once(tree):
    for name in ("up", "again"):
        (tree / "sub" / name).symlink_to(tree)
    (tree / "self.txt").symlink_to(tree / "self.txt")
    (tree / "broken.txt").symlink_to(tree / "nothing")
    (tree / "folder.txt").mkdir()
    (tree / "folder.txt" / "inside.txt").write_text("inside")
    (tree / "linked").symlink_to(tree / "folder.txt")
    seen = [b"_mine.txt", b"a.txt", b"inside", b"sub/b.txt"]
    assert joined(tree) == joined(f"{tree}/**/*.txt") == seen


@pytest.mark.parametrize("name", ["a [1] b%20c", "[x]", "what?", "a*b", "\u00fc \U0001f40d"])
def test_odd_names_are_names(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}{name}.txt").write_text(f"number {number}")
    for source in (folder, f"{folder}/*.txt", folder.as_uri()):
        assert joined(source) == [b"number 0", b"number 1"]
    (folder / f"0{name}.txt").write_text("".join(LINES))
    assert b"".join(joined(folder / f"0{name}.txt")) == "".join(LINES).encode()


def test_a_name_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / os.fsdecode(b"a\xff.txt")).write_text("x")
    assert r"a\udcff.txt': the name is not UTF-8; rename it" in refused(tmp_path)


def test_files_of_other_kinds_are_counted(tree, caplog):
    for name in ("a.csv", "README.md", ".hidden.csv"):
        (tree / name).write_text("x")
    (tree / "a.txt").write_text("".join(LINES))
    (tree / "sub" / "b.txt").write_text("".join(LINES))
    (tree / "_mine.txt").unlink()
    with caplog.at_level(logging.INFO):
        plan_source(DataConfig(source=str(tree), sequence_length=16))
    assert caplog.messages == [f"{tree}: files of other kinds passed over: 2 (README.md, a.csv)"]


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_byte_order_marks_are_dropped(tmp_path, end):
    rows = "".join(json.dumps({"text": line}) + "\r\n\r\n" for line in LINES)
    for number in range(2):
        for kind, content in ((".txt", "".join(LINES)), (".jsonl", rows)):
            marked = codecs.BOM_UTF8 + content.encode()
            file = tmp_path / f"{number}{kind}{end}"
            file.write_bytes(pack(marked, "zstd" if end == ".zst" else "gzip") if end else marked)
    whole = "".join(LINES).encode()
    assert joined(f"{tmp_path}/*.txt{end}") == [whole, whole]
    assert joined(f"{tmp_path}/*.jsonl{end}") == sorted(LINES * 2)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_one_compressed_file_is_split_like_a_plain_one(tmp_path, codec, kind, monkeypatch):
    rows = LINES if kind == ".txt" else [json.dumps({"text": line}) + "\n" for line in LINES]
    file = tmp_path / f"ALL{kind.upper()}{'.gz' if codec == 'gzip' else '.zst'}"
    half = len(rows) // 2  # archives may be written one after the other
    parts = ("".join(rows[:half]), "".join(rows[half:]))
    file.write_bytes(b"".join(pack(part.encode(), codec) for part in parts))
    for unit in (pieces.UNIT_BYTES, 500):
        monkeypatch.setattr(pieces, "UNIT_BYTES", unit)
        found = documents(file, validation_fraction=0.25)
        if kind == ".txt":
            train, held = (b"".join(found[split]).decode() for split in sources.SPLITS)
            assert train + held == "".join(LINES)
            assert held.startswith("line ")
            assert len(held) / len(train + held) == pytest.approx(0.25, abs=0.02)
        else:
            assert found["train"] + found["validation"] == LINES
            assert len(found["validation"]) == pytest.approx(100, abs=8)


def test_a_compressed_text_without_lines_is_read_in_parts_of_whole_characters(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(pieces, "UNIT_BYTES", 401)
    for number in range(2):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(("\U0001f40d" * 1001).encode()))
    found = joined(tmp_path)
    assert len(found) > 10
    assert "".join(text.decode() for text in found) == "\U0001f40d" * 2002


def test_compressed_files_weigh_what_they_unpack_to(tmp_path):
    content = gzip.compress(b"the same line\n" * 1_000_000)
    for number in range(8):
        (tmp_path / f"{number}.txt.gz").write_bytes(content)
    plan = plan_source(DataConfig(source=str(tmp_path)))
    assert [len(unit.pieces) for unit in plan.units] == [1] * 8
    assert plan.size == pytest.approx(8 * 14_000_000, rel=0.2)


BAD = {
    "cut.txt.gz": (gzip.compress(os.urandom(10_000))[:-20], "cannot be read (Truncated compressed"),
    "no.txt.gz": (b"plain text that says it is packed", "cannot be read (zlib inflate failed: inc"),
    "no.txt.zst": (b"plain text that says it is packed", "cannot be read (ZSTD decompress failed"),
    "wide.txt": ("text".encode("utf-16"), "is UTF-16; convert it with iconv -f UTF-16 -t UTF-8"),
    "big.txt": (codecs.BOM_UTF16_BE + b"\0a", "is UTF-16; convert it with iconv -f UTF-16"),
    "wider.jsonl": ("{}".encode("utf-32"), "is UTF-32; convert it with iconv -f UTF-32 -t UTF-8"),
    "unmarked.txt": ("text".encode("utf-16-le"), "4 of its first 8 bytes are zero, so it is bin"),
    "photo.txt": (bytes(range(256)) * 9, "9 of its first 2304 bytes are zero, so it is binary"),
    "deep.jsonl": (b"[" * 200_000 + b"\n", "deep.jsonl, line 1: not JSON (maximum recursion"),
    "latin.jsonl": ('{"text": "caf\u00e9"}\n'.encode("latin-1"), "latin.jsonl, line 1: not JSON ("),
    "list.jsonl": (b'\n["text"]\n', "list.jsonl, line 2: no text in data.text-field='text'; its "),
    "number.jsonl": (b'{"text": 5}\n', "number.jsonl, line 1: no text in data.text-field='text' "
                     "(it holds int); its columns: text"),
    "thrift.parquet": (b"PAR1" + b"\xff" * 40 + b"\x08\0\0\0PAR1", "truncated or not Parquet ("),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_named_with_its_file(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    said = refused(tmp_path)
    assert said.startswith(str(tmp_path / name))
    assert message in said


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_bad_row_is_named_by_its_line_in_the_whole_file(tmp_path, end, monkeypatch):
    rows = [json.dumps({"text": line}) + "\n" for line in LINES]
    rows[5] = "\n"
    rows[321] = '{"text": "cut\n'
    content = "".join(rows).encode()
    (tmp_path / f"a.jsonl{end}").write_bytes(gzip.compress(content) if end else content)
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1000)
    assert f"a.jsonl{end}, line 322, column 14: not JSON (Invalid control" in refused(tmp_path)
    plan = plan_source(DataConfig(source=str(tmp_path), sequence_length=16))
    assert len(plan.split("train")) > (0 if end else 5)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_null_texts_are_left_out(tmp_path, suffix):
    files: dict[str, list[str | None]] = {
        "a": [None, "one", None, "two", "three"],
        "c": [None] * 3,
        "f": ["four", None],
    }
    for name, texts in files.items():
        if suffix == ".jsonl":
            content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (tmp_path / f"{name}.jsonl").write_text(content)
        else:
            pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet")
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
        pq.ParquetWriter(tmp_path / "no-group.parquet", pa.schema({"text": pa.string()})).close()
    assert joined(tmp_path) == ["four", "one", "three", "two"]


def test_a_long_line_is_searched_a_unit_at_a_time(tmp_path, monkeypatch):
    rows = ['{"text": "short"}\n', json.dumps({"text": "x" * 50_000}) + "\n"]
    (tmp_path / "a.jsonl").write_text("".join(rows * 2))
    monkeypatch.setattr(pieces, "UNIT_BYTES", 1000)
    found = documents(tmp_path / "a.jsonl")
    assert [len(text) for text in found["train"] + found["validation"]] == [5, 50_000] * 2


def test_raw_bytes_may_be_given_as_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.frombuffer(bytes(range(256)) * 9, np.uint8))
    found = documents(tmp_path / "a.npy")
    assert sum(map(len, found["train"] + found["validation"])) == 2304


def test_a_file_is_found_by_any_case_of_its_ending(tmp_path):
    for name in ("A.TXT", "b.Txt"):
        (Path(tmp_path) / name).write_text(name)
    assert joined(tmp_path) == [b"A.TXT", b"b.Txt"]
