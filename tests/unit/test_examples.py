"""Tasks and images as sources: what their rows are, the split, the units, the errors."""

import gzip
import struct
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from smt_ray.config import DataConfig, TaskConfig
from smt_ray.data import pieces, sources
from smt_ray.data import synthetic as tasks
from smt_ray.data.export import ExportedRNN, load_rnn, save_rnn
from smt_ray.data.shards import from_column, target_type, token_type
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import NumberTokenizer, load_tokenizer
from smt_ray.tasks import TASKS
from tests.samples import MODEL, random_weights

DIGITS = DataConfig(source="pixels:digits", sequence_length=64, validation_fraction=0.1)
H, W = 4, 3


def task(name="copy", length=10, sequences=2500, **sizes):
    return DataConfig(
        source=f"task:{name}",
        sequence_length=length,
        task=TaskConfig(sequences=sequences, **sizes),
    )


def columns(config: DataConfig, rows: int = 512) -> dict[str, dict[str, Any]]:
    """Return each split's columns as arrays, as the token stage would write them."""
    plan = plan_source(config)
    found: dict[str, dict[str, Any]] = {}
    for split in sources.SPLITS:
        tables: list[Any] = []
        for unit in plan.split(split):
            packer = sources.packer(unit, plan.config, plan.tokenizer)
            tables += packer.tables(sources.read(unit, plan.config, plan.tokenizer), rows)
        assert max(map(len, tables)) <= rows
        kinds = token_type(plan.tokenizer.vocabulary), target_type(plan.tokenizer.vocabulary)
        raw = dict(zip(("tokens", "targets"), kinds, strict=True))
        found[split] = {
            name: np.concatenate(
                [
                    from_column(table[name], raw[name]).astype(int)
                    if name in raw
                    else table[name].to_numpy()
                    for table in tables
                ]
            )
            for name in tables[0].column_names
        }
    return found


def pixels(split):
    """Return a split's images, with all that must hold between inputs and targets checked."""
    inputs, targets = split["tokens"], split["targets"]
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert (split["bytes"] == targets.shape[1]).all()
    assert len(set(inputs[:, 0])) == 1
    assert inputs[0, 0] > targets.max()
    return targets


@pytest.mark.parametrize("name", TASKS)
def test_task_rows_are_the_tasks_blocks(name):
    config = task(name, length=40)
    found = columns(config)
    for split, count in (("train", 2500), ("validation", 125)):
        blocks = []
        for block in range(-(-count // tasks.BLOCK)):
            seed = tasks.block_seed(block, split == "validation")
            blocks.append(TASKS[name].generate(config.task, 40, tasks.BLOCK, seed))
        for column, parts in zip(("tokens", "targets"), zip(*blocks, strict=True), strict=True):
            assert np.array_equal(found[split][column], torch.cat(parts)[:count].numpy())
        assert "bytes" not in found[split]
    vocabulary = sources.load_tokenizer_of(config).vocabulary
    assert vocabulary == TASKS[name].vocabulary(config.task)
    assert found["train"]["tokens"].max() < vocabulary


def test_only_training_rows_are_easier():
    found = columns(task("keysvalues", length=32, fewest_pairs=1))
    lacking = {split: rows["tokens"][:, 0] == 0 for split, rows in found.items()}
    assert abs(lacking["train"].mean() - 5 / 6) < 4 * 0.0075  # standard deviations
    assert not lacking["validation"].any()


def test_task_rows_depend_on_their_place_alone(monkeypatch):
    found = columns(task())
    ids = [set(split["sequence_id"].tolist()) for split in found.values()]
    assert not ids[0] & ids[1]
    more = columns(task(sequences=5000))
    monkeypatch.setattr(pieces, "UNIT_BYTES", tasks.BLOCK * 10)
    units = plan_source(task()).split("train")
    assert [unit.pieces[0].stop for unit in units] == [1024, 2048, 2500]
    cut = columns(task(), rows=100)
    for split, rows in found.items():
        count = len(rows["tokens"])
        for name in ("tokens", "targets"):
            assert np.array_equal(rows[name], cut[split][name])
            assert np.array_equal(rows[name], more[split][name][:count])


def test_validation_has_seeds_and_sequences_of_its_own():
    seeds = [{tasks.block_seed(n, held) for n in range(5000)} for held in (False, True)]
    assert len(seeds[0] | seeds[1]) == 10_000
    assert max(seeds[0] | seeds[1]) < 2**32  # more bits are not heeded
    found = columns(task("retrieval", length=16))
    train, held = ({tuple(row) for row in split["tokens"].tolist()} for split in found.values())
    assert not train & held


def test_digits_are_scikit_learns():
    found = columns(DIGITS)
    parts = [pixels(split) for split in found.values()]
    images = load_digits().images.reshape(-1, 64)
    assert [len(part) for part in parts] == [1617, 180]
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, images))
    assert found["train"]["tokens"][0, 0] == 17
    plan, images = plan_source(DIGITS), sources.images_in(DIGITS)
    assert plan.tokenizer.vocabulary == 18
    assert plan.size == pytest.approx(1797 * 64, abs=2)
    assert (images.count, images.height, images.width, images.pixels) == (1797, 8, 8, 64)


def idx(path, images, header=None, packed=False):
    """Write an IDX file of images; return its path."""
    content = (header or struct.pack(">IIII", 0x803, *images.shape)) + images.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (50, H, W), dtype=np.uint8)


def source(place, length=H * W, fraction=0.2):
    name = f"pixels:{place}"
    return DataConfig(source=name, sequence_length=length, validation_fraction=fraction)


def test_an_idx_file_is_read_plain_packed_and_by_uri(tmp_path, images, monkeypatch):
    plain = idx(tmp_path / "images", images)
    packed = idx(tmp_path / "images.gz", images, packed=True)
    monkeypatch.chdir(tmp_path)
    places = (plain, packed, plain.as_uri(), "images", "images.gz")
    found = [columns(source(place)) for place in places]
    monkeypatch.setattr(pieces, "UNIT_BYTES", 7 * H * W)
    assert len(plan_source(source(packed)).split("train")) > 2
    found += [columns(source(packed), rows=3)]
    parts = [pixels(split) for split in found[0].values()]
    assert [len(part) for part in parts] == [40, 10]
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, images.reshape(50, -1)))
    assert found[0]["train"]["tokens"][0, 0] == 256
    for other in found[1:]:
        for split, rows in found[0].items():
            assert np.array_equal(rows["tokens"], other[split]["tokens"])


ERRORS = {
    "missing": "missing: no such file; give `digits` or the path of an IDX file",
    "directory": "directory: no such file; give `digits` or",
    "text": "text: no IDX file of images (unsigned bytes in three axes)",
    "labels": "labels: no IDX file of images",
    "floats": "floats: no IDX file of images",
    "empty": "empty: no IDX file of images",
    "short": "short: truncated; its header promises 50 images",
    "short.gz": "short.gz: truncated or damaged gzip",
    "lost.gz": "lost.gz: truncated; its header promises 50 images",
    "head.gz": "head.gz: truncated or damaged gzip",
    "single": "single: has 1 images of 4 x 3 pixels; both splits need an image",
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_idx_files_get_one_line(tmp_path, images, name):
    (tmp_path / "directory").mkdir()
    (tmp_path / "text").write_text("a text that is longer than the header")
    idx(tmp_path / "labels", images[:, 0, 0], struct.pack(">II", 0x801, 50))
    idx(tmp_path / "floats", images, struct.pack(">IIII", 0xD03, 50, H, W))
    (tmp_path / "empty").touch()
    idx(tmp_path / "single", images[:1])
    whole = idx(tmp_path / "short", images).read_bytes()
    (tmp_path / "short").write_bytes(whole[:-1])
    (tmp_path / "short.gz").write_bytes(gzip.compress(whole)[:-20])
    (tmp_path / "lost.gz").write_bytes(gzip.compress(whole[:-1]))
    (tmp_path / "head.gz").write_bytes(gzip.compress(whole)[:12])
    with pytest.raises(sources.SourceError) as caught:
        plan_source(source(tmp_path / name))
    said = str(caught.value)
    assert said.startswith(f"data.source='pixels:{tmp_path / name}': {tmp_path}/{ERRORS[name]}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (task("cpoy"), "data.source='task:cpoy': no such task; give one of retrieval, copy, "),
        (task("copy/"), "data.source='task:copy/': no such task"),
        (task("retrieval", length=3), "data.sequence-length=3: the marker, its needle and "),
        (task("keysvalues", length=31), "data.sequence-length=31: every pair and every query "),
        (task("keysvalues", length=32, symbols=7), "data.task.pairs=8: data.task.symbols=7 make"),
        (DataConfig(source="pixels:digits", sequence_length=63), "data.sequence-length=63: an "
         "image of pixels:digits has 8 x 8 pixels; give 64"),
    ],
)  # fmt: skip
def test_bad_examples_get_one_line_that_names_the_field(config, message):
    with pytest.raises(sources.SourceError) as caught:
        plan_source(config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_good_examples_pass_the_check(tmp_path, images):
    plan_source(DIGITS)
    plan_source(task())
    plan_source(source(idx(tmp_path / "images.gz", images, packed=True)))


def test_examples_bring_their_own_numbers(tmp_path):
    for name, given in (("rnn", NumberTokenizer(17)), ("other", NumberTokenizer(18))):
        given.save(Location.of(tmp_path / name).make_dir())
    own = sources.load_tokenizer_of(DataConfig(source="task:copy", tokenizer=str(tmp_path / "rnn")))
    assert (own.name, own.vocabulary) == ("numbers", 17)
    rule = r"^data.tokenizer='.*other': has 18 numbers, but task:copy has 17 numbers of its own; "
    with pytest.raises(ValueError, match=rule):
        sources.load_tokenizer_of(DataConfig(source="task:copy", tokenizer=str(tmp_path / "other")))
    rule = r"^data.source='stdlib': is text, but .*rnn knows numbers only$"
    with pytest.raises(ValueError, match=rule):
        plan_source(DataConfig(tokenizer=str(tmp_path / "rnn")))


def test_numbers_round_trip_and_refuse_words(tmp_path):
    NumberTokenizer(17).save(Location.of(tmp_path))
    tokenizer = load_tokenizer(Location.of(tmp_path))
    assert (tokenizer.name, tokenizer.vocabulary) == ("numbers", 17)
    ids = tokenizer.encode("3 16\n0 ")
    assert ids.tolist() == [3, 16, 0]
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == "3 16 0"
    assert tokenizer.encode("").shape == (0,)
    for text, word in (("1 17", "17"), ("-1", "-1"), ("def x", "def"), (b"0.5", "0.5")):
        with pytest.raises(ValueError, match=rf"^'{word}': is none of the numbers 0..16 "):
            tokenizer.encode(text)


def test_an_exported_rnn_of_a_task_writes_numbers(tmp_path):
    place = Location.of(tmp_path / "rnn")
    save_rnn(
        random_weights(ExportedRNN(MODEL, 17, NumberTokenizer(17))), place, NumberTokenizer(17)
    )
    rnn = load_rnn(place)
    random = torch.Generator().manual_seed(0)
    written = "".join(rnn.write("0 5 3", 20, generator=random))
    random = torch.Generator().manual_seed(0)
    expected = list(rnn.generate(torch.tensor([0, 5, 3]), 20, temperature=1.0, generator=random))
    assert rnn.tokenizer.encode(written).tolist() == expected
    with pytest.raises(ValueError, match="'def': is none of the numbers"):
        list(rnn.write("def", 1))
