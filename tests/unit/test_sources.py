"""Sources: every kind of file, the split, the units of work, the errors; tokenizers."""

import json
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from smt_ray.config import DataConfig
from smt_ray.data import pieces, sources
from smt_ray.data.files import listed
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

TEXTS = [f"Document {n}: caf\u00e9 and \U0001f40d, line {n * n}.\n" for n in range(40)]


def documents(config: DataConfig, tokenizer: Tokenizer | None = None) -> dict[str, list[Any]]:
    """Return all documents of each split, token ids as lists, in the order of the units."""
    plan = plan_source(replace(config, sequence_length=2))
    return {
        split: [
            document.tolist() if isinstance(document, np.ndarray) else document
            for unit in plan.split(split)
            for document in sources.read(unit, plan.config, tokenizer or plan.tokenizer)
        ]
        for split in sources.SPLITS
    }


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    match path.suffix:
        case ".txt":
            path.write_text("".join(texts))
        case ".jsonl":
            path.write_text("".join(json.dumps({column: text, "n": 1}) + "\n" for text in texts))
        case ".parquet":
            table = pa.table({column: texts, "n": list(range(len(texts)))})
            pq.write_table(table, path, row_group_size=16)
    return path


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A byte-level BPE tokenizer, trained here."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.enable_truncation(5)  # to be ignored
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "bpe.json"))
    return tmp_path / "bpe.json"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_one_file_of_rows_is_split_by_document(tmp_path, suffix):
    path = write(tmp_path / f"all{suffix}", TEXTS)
    found = documents(DataConfig(source=str(path), validation_fraction=0.25))
    assert found["train"] + found["validation"] == TEXTS
    assert 0 < len(found["validation"]) <= 12


def test_one_text_file_is_split_at_a_line(tmp_path):
    path = write(tmp_path / "all.txt", TEXTS)
    found = documents(DataConfig(source=str(path), validation_fraction=0.25))
    assert b"".join(found["train"] + found["validation"]).decode() == "".join(TEXTS)
    assert found["train"][0].endswith(b"\n")


def test_text_without_lines_is_split_between_characters(tmp_path):
    (tmp_path / "all.txt").write_text("\U0001f40d" * 1001)
    found = documents(DataConfig(source=str(tmp_path / "all.txt"), validation_fraction=0.1))
    assert (found["train"][0] + found["validation"][0]).decode() == "\U0001f40d" * 1001
    assert len(found["validation"][0].decode()) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet", ".npy"])
def test_big_files_become_several_units_without_loss(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(pieces, "UNIT_BYTES", 200)
    path = write(tmp_path / f"all{suffix}", TEXTS)
    if suffix == ".npy":
        np.save(path, np.arange(1000, dtype=np.uint16) % 256)
    config = DataConfig(source=str(path), sequence_length=16)
    plan = plan_source(config)
    assert len(plan.split("train")) >= 2
    assert plan.split("train") + plan.split("validation") == plan.units
    assert [unit.index for unit in plan.units] == [*range(len(plan.units))]
    found = documents(config)
    both = found["train"] + found["validation"]
    if suffix == ".npy":
        assert np.concatenate(both).tolist() == (np.arange(1000) % 256).tolist()
    elif suffix == ".txt":
        assert b"".join(both).decode() == "".join(TEXTS)
    else:
        assert both == TEXTS


def test_files_are_split_by_hash(tmp_path):
    for n in range(60):
        (tmp_path / f"{n}.txt").write_text(f"file {n}")
    config = DataConfig(source=str(tmp_path / "*.txt"), validation_fraction=0.3)
    found = documents(config)
    train, held = set(found["train"]), set(found["validation"])
    assert train | held == {f"file {n}".encode() for n in range(60)}
    assert not train & held
    assert 5 <= len(held) <= 30
    (tmp_path / "new.txt").write_text("one more")
    assert documents(config)["validation"] in (
        [*found["validation"]],
        [*found["validation"], b"one more"],
    )


@pytest.mark.parametrize("fraction", [1e-9, 0.5])
def test_two_files_give_one_to_each_split(tmp_path, fraction):
    for number in range(8):
        place = tmp_path / str(number)
        place.mkdir()
        for name in "ab":
            (place / f"{name}{number}.txt").write_text(name * 9)
        found = documents(DataConfig(source=str(place), validation_fraction=fraction))
        assert len(found["train"]) == len(found["validation"]) == 1


def test_wildcards_directories_and_uris_find_the_same_files(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.md").write_text("ignored in a directory")
    places = [
        str(tmp_path),
        f"{tmp_path}/**/*.txt",
        tmp_path.as_uri(),
        f"{tmp_path.as_uri()}/**/*.txt",
    ]
    monkeypatch.chdir(tmp_path.parent)
    places.append(tmp_path.name)
    for place in places:
        found = documents(DataConfig(source=place))
        assert sorted(found["train"] + found["validation"]) == [b"a.txt", b"b.txt", b"deep/c.txt"]
    assert len({str(documents(DataConfig(source=place))) for place in places}) == 1
    configs = [DataConfig(source=place, sequence_length=2) for place in places]
    assert len({plan_source(config).fingerprint for config in configs}) == 1


def test_stdlib_is_the_interpreters_own_source_by_relative_path():
    plan = plan_source(DataConfig())
    paths = {piece.path for unit in plan.units for piece in unit.pieces}
    assert {"os.py", "json/decoder.py"} <= paths
    assert not any("-packages" in path or path.startswith("/") for path in paths)
    unit = plan.split("validation")[0]
    texts = list(sources.read(unit, DataConfig(), ByteTokenizer()))
    first = Path(sysconfig.get_paths()["stdlib"]) / unit.pieces[0].path
    assert texts[0] == first.read_bytes()


def test_saved_data_set_without_validation_is_held_out_by_document(tmp_path):
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "set")
    config = DataConfig(source=f"hf:{tmp_path / 'set'}", validation_fraction=0.3)
    found = documents(config)
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)
    assert 4 <= len(found["validation"]) <= 24
    assert documents(config) == found


def test_data_set_with_validation_keeps_its_split(tmp_path):
    DatasetDict(
        train=Dataset.from_dict({"story": TEXTS[:30]}),
        validation=Dataset.from_dict({"story": TEXTS[30:]}),
    ).save_to_disk(tmp_path / "set")
    config = DataConfig(source=f"hf:{tmp_path / 'set'}", text_field="story")
    assert documents(config) == {"train": TEXTS[:30], "validation": TEXTS[30:]}


def test_directory_of_data_files_is_streamed_as_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    for n in range(2):
        write(tmp_path / "set" / f"train-{n}.parquet", TEXTS[n::2])
    config = DataConfig(source=f"hf:{tmp_path / 'set'}", validation_fraction=0.3)
    assert len(plan_source(config).split("train")) == 2
    found = documents(config)
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)


def test_numpy_tokens_are_checked_against_the_vocabulary(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, 2, 3, 4, 5, 256]))
    with pytest.raises(ValueError, match=r"data.source='.*': token ids .*256 are outside the voc"):
        documents(DataConfig(source=str(tmp_path / "a.npy"), validation_fraction=0.5))


ERRORS = {
    "nothing.txt": "no .txt, .jsonl, .parquet, .npy file is there",
    "*.nothing": "no .txt, .jsonl, .parquet, .npy file is there",
    "known.csv": "unknown kind of file; give one of",
    "empty.txt": "all of its 1 files are empty",
    "short.txt": r"its train split has \d+ tokens, but one sequence needs 129; add text or lower",
    "held.txt": r"its validation split has \d+ tokens, .* raise data.validation-fraction",
    "bad.parquet": "bad.parquet: truncated or not Parquet",
    "other.parquet": "no text in data.text-field='text'; its columns: n, story",
    "other.jsonl": "no text in data.text-field='text'; its columns: n, story",
    "bad.jsonl": "bad.jsonl, line 1, column 2: not JSON",
    "square.npy": r"shape \(2, 3\), int64; it must be one axis of integers",
    "hf:set": "no text in data.text-field='text'; its columns: story",
    "hf:nowhere/at-all": "nowhere/at-all",
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_sources_get_one_line(tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known.csv").write_text("a,b")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "held.txt").write_text("line\n" * 200)
    (tmp_path / "bad.parquet").write_text("PAR1")
    write(tmp_path / "other.parquet", TEXTS, "story")
    write(tmp_path / "other.jsonl", TEXTS, "story")
    (tmp_path / "bad.jsonl").write_text("{'text'\n" * 100)
    np.save(tmp_path / "square.npy", np.zeros((2, 3), np.int64))
    Dataset.from_dict({"story": TEXTS}).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=ERRORS[name]) as caught:
        plan_source(DataConfig(source=name))
    message = str(caught.value)
    assert message.startswith(f"data.source='{name}'")
    assert "\n" not in message


def test_a_plan_knows_the_source_its_tokenizer_and_its_size(tmp_path, byte_level, monkeypatch):
    whole = write(tmp_path / "all.txt", TEXTS)
    monkeypatch.chdir(tmp_path)
    config = DataConfig(source="all.txt", tokenizer="bpe.json", sequence_length=16)
    plan = plan_source(config)
    assert plan.config == replace(config, source=str(whole))
    assert plan.tokenizer.digest == load_tokenizer(str(byte_level)).digest
    assert plan.size == len("".join(TEXTS).encode())
    assert len(plan.unit_fingerprints) == len(plan.units) == 2


def test_a_source_is_listed_once(tmp_path, monkeypatch):
    for number in range(9):
        write(tmp_path / f"{number}.txt", TEXTS)
    listings = []

    def counted(base, pattern):
        listings.append(base)
        return listed(base, pattern)

    for module in ("files", "hub"):
        monkeypatch.setattr(f"smt_ray.data.{module}.listed", counted)
    for source in (str(tmp_path), f"{tmp_path}/*.txt", f"hf:{tmp_path}"):
        listings.clear()
        assert plan_source(DataConfig(source=source, sequence_length=16)).fingerprint
        assert len(listings) == 1


@pytest.mark.parametrize("kind", ["bytes", "json"])
def test_tokenizer_round_trip_and_byte_counts(tmp_path, byte_level, kind):
    tokenizer = load_tokenizer("bytes" if kind == "bytes" else str(byte_level))
    text = "".join(TEXTS) + "\u4e2d\u6587 \x01"
    ids = tokenizer.encode(text)
    assert np.issubdtype(ids.dtype, np.integer)
    assert ids.max() < tokenizer.vocabulary
    assert tokenizer.decode(ids) == text
    begin, end = ids[: len(ids) // 2], ids[len(ids) // 2 : len(ids) // 2 * 2]
    ends = [len(tokenizer.decode(part).encode()) for part in (begin, end)]
    assert tokenizer.covered(np.stack((begin, end))).tolist() == ends
    assert tokenizer.covered(ids[None]).tolist() == [len(text.encode())]
    assert tokenizer.covered(np.full((2, 3), tokenizer.separator)).tolist() == [0, 0]
    assert np.array_equal(tokenizer.encode(text.encode()), ids)
    assert tokenizer.encode("").shape == (0,)
    tokenizer.save(Location.of(tmp_path))
    again = load_tokenizer(Location.of(tmp_path))
    assert np.array_equal(again.encode(text), ids)
    assert (again.vocabulary, again.separator) == (tokenizer.vocabulary, tokenizer.separator)


def test_json_tokenizer_ends_documents_with_its_own_token(byte_level):
    assert load_tokenizer(str(byte_level)).separator == 1


def test_long_text_is_encoded_in_parts_at_line_ends(byte_level, monkeypatch):
    tokenizer = load_tokenizer(str(byte_level))
    whole = [tokenizer.encode(text) for text in TEXTS]
    monkeypatch.setattr("smt_ray.data.tokenizers.CHUNK", len(TEXTS[0]) + 5)
    assert np.array_equal(tokenizer.encode("".join(TEXTS)), np.concatenate(whole))


@pytest.mark.parametrize("content", [None, "{}", "not JSON", "[1]"])
def test_bad_tokenizer_names_its_field(tmp_path, content):
    if content is not None:
        (tmp_path / "t.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"data.tokenizer='.*t.json': .*; give `bytes` or"
    ) as caught:
        load_tokenizer(str(tmp_path / "t.json"))
    assert "\n" not in str(caught.value)


LOOKS = {
    "vocab.json": ('{"model": 19849, "a": 1}', "it looks like a vocab.json of 2 token ids"),
    "tokenizer_config.json": ('{"tokenizer_class": "X"}', "it looks like a tokenizer_config.json"),
    "config.json": ('{"model_type": "gpt2"}', "it looks like the config.json of a model"),
    "map.json": ('{"eos_token": "x"}', "it looks like a special_tokens_map.json"),
    "merges.txt": ("#version: 0.2\na b\n", "not JSON (it looks like a merges.txt)"),
    "vocab.txt": ("[PAD]\n[UNK]\nthe\n", "not JSON (it is truncated or damaged)"),
    "words.txt": ("the\nof\n", "not JSON (it is plain text, as vocab.txt or merges.txt are)"),
    "t.model": ("\n\x0e\n\x05<unk>\x15\0\0", "not JSON (it looks like a SentencePiece .model)"),
    "cut.json": ('{"model": {"type"', "not JSON (it is truncated or damaged)"),
    "empty.json": ("", "not JSON (it is empty)"),
    "deep.json": ("[" * 200_000, "not JSON ("),
    "text.json": ('{"model": "BPE"}', "its `model` is no object"),
    "odd.json": ('{"model": {"type": "Odd"}}', "data did not match any variant"),
    "none.json": ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "it has 0 tokens"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_is_no_tokenizer_is_called_what_it_looks_like(tmp_path, name):
    content, looks = LOOKS[name]
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(
        ValueError, match=r"^data.tokenizer='.*': .*; give `bytes` or the path of "
    ) as caught:
        load_tokenizer(str(tmp_path / name))
    assert looks in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_of_a_tokenizer_needs_its_json(tmp_path, byte_level):
    for name in ("vocab.json", "merges.txt", "config.json"):
        (tmp_path / name).write_text("{}")
    rule = r": a directory without tokenizer.json, only merges.txt, vocab.json; give `bytes` or"
    with pytest.raises(ValueError, match=rule):
        load_tokenizer(str(tmp_path))
    byte_level.rename(tmp_path / "tokenizer.json")
    assert load_tokenizer(str(tmp_path)).encode("x").size


def test_text_that_a_tokenizer_has_no_token_for_is_one_line(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "[UNK]"}
    (tmp_path / "t.json").write_text(json.dumps({"version": "1.0", "model": model}))
    write(tmp_path / "all.txt", TEXTS)
    config = DataConfig(source=str(tmp_path / "all.txt"), tokenizer=str(tmp_path / "t.json"))
    rule = r"^data.tokenizer='.*t.json': cannot encode the text: WordLevel error: Missing \[UNK\]"
    with pytest.raises(ValueError, match=rule):
        load_tokenizer(config.tokenizer).encode("c")


def test_half_a_surrogate_pair_is_replaced_alike_by_all_tokenizers(tmp_path, byte_level):
    rows = [r'{"text": "cut \ud83d"}', r'{"text": "whole \ud83d\ude00"}'] * 20
    (tmp_path / "all.jsonl").write_text("\n".join(rows))
    texts = documents(DataConfig(source=str(tmp_path / "all.jsonl")))["train"][:2]
    for name in ("bytes", str(byte_level)):
        tokenizer = load_tokenizer(name)
        found = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
        assert found == ["cut ?", "whole \U0001f600"]
