"""The token stage on a local Ray: deterministic, complete, refuses what is too short."""

import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from smt_ray.config import DataConfig, RunConfig, TaskConfig
from smt_ray.data import pieces, sources
from smt_ray.data.manifest import check_shards, open_manifest
from smt_ray.data.reader import Reader
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.synthetic import BLOCK, block_seed
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.data.tokens import write_tokens
from smt_ray.data.units import UNITS
from smt_ray.pipeline.stages import fingerprints
from smt_ray.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(autouse=True)
def _quiet():
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False


def test_two_runs_write_the_same_files(tmp_path, monkeypatch):
    texts = {}
    (tmp_path / "texts").mkdir()
    for n in range(12):
        texts[n] = "".join(f"{n}: line {m}\n" for m in range(40 + n))
        (tmp_path / "texts" / f"{n}.txt").write_text(texts[n])
    monkeypatch.setattr(pieces, "UNIT_BYTES", 2000)
    monkeypatch.chdir(tmp_path)
    data = DataConfig(source="texts/*.txt", sequence_length=16, validation_fraction=0.2)
    targets = [Location.of(tmp_path / name) for name in ("first", "second")]
    (targets[1] / "train").make_dir()
    (targets[1] / "train" / "999999-0000.parquet").write_text("left by an unfinished try")
    found = [write_tokens(plan_source(data), target) for target in targets]
    assert found[0] == found[1]
    every_id = []
    covered = documents = 0
    for split in sources.SPLITS:
        manifests = [
            open_manifest(target / split, "tokens", sequence_length=16, vocabulary=256)
            for target in targets
        ]
        for target, manifest in zip(targets, manifests, strict=True):
            check_shards(target / split, manifest)
        assert manifests[0] == manifests[1]
        files = [(target / split).files(".parquet") for target in targets]
        assert [file.name for file in files[0]] == list(manifests[0]["shards"])
        tables = []
        for one, other in zip(*files, strict=True):
            assert one.read_bytes() == other.read_bytes()
            tables.append(pq.read_table(one.path))
        rows = sum(map(len, tables))
        assert rows == manifests[0]["sequences"]
        said = [(len(table), table["sequence_id"][0].as_py()) for table in tables]
        listed = manifests[0]["shards"].values()
        assert said == [(shard["rows"], shard["first_id"]) for shard in listed]
        every_id += [i for table in tables for i in table["sequence_id"].to_pylist()]
        covered += sum(np.sum(table["bytes"].to_numpy()) for table in tables)
        assert manifests[0]["bytes"] == sum(np.sum(table["bytes"].to_numpy()) for table in tables)
        documents += manifests[0]["documents"]
    assert len(set(every_id)) == len(every_id)
    assert len({i >> 32 for i in every_id}) >= 3
    assert documents == 12
    size = sum(map(len, texts.values()))
    assert 0.9 * size < covered < size


def test_examples_are_written_with_their_targets(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "UNIT_BYTES", 16 * BLOCK)
    task = TaskConfig(sequences=2500)
    data = DataConfig(source="task:retrieval", sequence_length=16, task=task)
    target = Location.of(tmp_path / "task")
    write_tokens(plan_source(data), target)
    manifest = open_manifest(target / "train", "tokens", targets=1, vocabulary=17)
    assert (manifest["sequences"], manifest["tokenizer"]) == (2500, "numbers")
    assert len(manifest["shards"]) == 3
    assert "bytes" not in manifest
    settings = {"lanes": 1, "seed": 0}
    batch = Reader(target / "train", manifest, global_batch=2500, **settings).batch(0)
    order = batch["sequence_id"].argsort()
    inputs = torch.cat(
        [
            TASKS["retrieval"].generate(task, 16, BLOCK, block_seed(block, False))[0]
            for block in range(3)
        ]
    )
    assert torch.equal(batch["inputs"][order], inputs[:2500])
    assert (batch["targets"] != -100).sum(0).tolist() == [0] * 15 + [2500]

    target = Location.of(tmp_path / "pixels")
    data = DataConfig(source="pixels:digits", sequence_length=64)
    write_tokens(plan_source(data), target)
    manifest = open_manifest(target / "validation", "tokens", targets=64, vocabulary=18)
    assert (manifest["image"], manifest["bytes"]) == ([8, 8], 90 * 64)
    batch = Reader(target / "validation", manifest, global_batch=90, **settings).batch(0)
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert set(batch) == {"sequence_id", "inputs", "targets", "bytes"}
    assert load_tokenizer(target).vocabulary == 18


def test_errors_of_tasks_arrive_as_one_line(tmp_path):
    """What the plan cannot know: the size of a file and what begins a split say nothing of it."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 40)
    data = DataConfig(
        source=str(tmp_path / "a.jsonl"), sequence_length=100, validation_fraction=0.5
    )
    with pytest.raises(
        ValueError, match=r"^data.source=.*train split has 39 tokens.*needs 101; [^\n]*$"
    ):
        write_tokens(plan_source(data), Location.of(tmp_path / "short"))
    for name in "abcdef":
        np.save(tmp_path / f"{name}.npy", np.full(1000, 255))
    data = DataConfig(source=str(tmp_path / "*.npy"), sequence_length=16)
    last = plan_source(data).split("train")[-1].pieces[-1].path
    np.save(last, np.full(1000, 256))
    with pytest.raises(ValueError, match=r"^data.source=.*outside the vocabulary[^\n]*$"):
        write_tokens(plan_source(data), Location.of(tmp_path / "foreign"))


def test_a_corrected_source_makes_only_its_own_units_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pieces, "UNIT_BYTES", 4000)
    source = tmp_path / "texts"
    source.mkdir()
    for name in "abcdef":
        rows = [json.dumps({"text": f"{name}: {'word ' * 9}{n}"}) + "\n" for n in range(200)]
        (source / f"{name}.jsonl").write_text("".join(rows))
    good = (source / "f.jsonl").read_text()
    (source / "f.jsonl").write_text(good.replace("{", "[", 181).replace("[", "{", 180))
    data = DataConfig(source=str(source), sequence_length=16)
    names = ("artifacts/tokens-first", "artifacts/tokens-second", "elsewhere/tokens-fresh")
    first, second, fresh = (Location.of(tmp_path / name) for name in names)
    caplog.set_level(logging.INFO)
    times = []
    for _ in range(2):  # the same command makes nothing anew that is finished
        with pytest.raises(ValueError, match=r"f.jsonl, line 181, column \d+: not JSON \([^\n]*$"):
            write_tokens(plan_source(data), first.make_dir())
        shards = first.files(".parquet", recursive=True)
        times.append({shard.path: Path(shard.path).stat().st_mtime_ns for shard in shards})
    assert times[0]
    assert times[0].items() <= times[1].items()
    finished = len((first / UNITS).files(".json")) - 1

    (source / "f.jsonl").write_text(good)
    write_tokens(plan_source(data), second)
    said = [re.fullmatch(r"tokens: (\d+) of (\d+) units .*", line) for line in caplog.messages]
    kept, units = [(int(match[1]), int(match[2])) for match in said if match][-1]
    assert finished - units / 6 - 1 <= kept < units
    assert kept >= 3
    assert not first.exists()
    write_tokens(plan_source(data), fresh)
    files = second.files(recursive=True)
    assert [f.path[len(second.path) :] for f in files] == [
        f.path[len(fresh.path) :] for f in fresh.files(recursive=True)
    ]
    for one, other in zip(files, fresh.files(recursive=True), strict=True):
        assert one.read_bytes() == other.read_bytes()
    before = {file.path: Path(file.path).stat().st_mtime_ns for file in files}
    write_tokens(plan_source(data), second)  # killed before its own manifest was there
    assert {path: Path(path).stat().st_mtime_ns for path in before} == before


def test_later_stages_know_tokens_by_what_was_written(tmp_path):
    """A source that was touched is read again, and no more; one that was edited is another."""
    text = "".join(f"line {n} of a text\n" for n in range(200))
    file = tmp_path / "text.txt"
    config = RunConfig(data=DataConfig(source=str(file), sequence_length=16))

    def tokens(content, age):
        file.write_text(content)
        changed = file.stat().st_mtime_ns - age * 10**9
        os.utime(file, ns=(changed, changed))
        plan = plan_source(config.data)
        place = Location.of(tmp_path / "artifacts" / f"tokens-{plan.fingerprint}")
        digest = write_tokens(plan, place)["digest"]
        return digest, fingerprints(config, plan.fingerprint, digest)

    digest, before = tokens(text, 60)
    same_digest, touched = tokens(text, 40)
    assert touched["tokens"] != before["tokens"]
    assert same_digest == digest
    assert touched | {"tokens": before["tokens"]} == before

    other_digest, edited = tokens(text.replace("line 9 ", "line 8 "), 20)
    assert edited["tokens"] not in {before["tokens"], touched["tokens"]}
    assert other_digest != digest
    assert edited["teacher"] != before["teacher"]
