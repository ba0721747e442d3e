"""Files that are no longer what was written: each is named in one line, with what to do."""

import hashlib
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from smt_ray.config import DataConfig, RunConfig
from smt_ray.data import tokens
from smt_ray.data.export import load_rnn, save_rnn
from smt_ray.data.manifest import check_shards, open_manifest, write_manifest
from smt_ray.data.reader import Reader
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import ByteTokenizer
from smt_ray.data.weights import load_weights, write_weights
from smt_ray.evaluation import evaluator as evaluate
from smt_ray.evaluation.longer import joined_windows
from smt_ray.model.rnn import RNN
from smt_ray.pipeline.artifacts import location_of, make, read_manifest
from smt_ray.pipeline.run_directory import check_same_run
from smt_ray.report.ranking import Entry
from smt_ray.studies.options import read_record
from smt_ray.studies.points import kept
from smt_ray.studies.trials import Records
from smt_ray.train.metrics import read_metrics
from tests.samples import MODEL, read_all, rows, write

L, ROWS = 6, 64


def flip(file, start, count=64):
    """Change bytes in the middle of a file."""
    content = bytearray(Path(file).read_bytes())
    content[start : start + count] = bytes(255 - byte for byte in content[start : start + count])
    Path(file).write_bytes(content)


def middle(shard, column):
    """Return a place in the bytes of a column's first row group."""
    with shard.open() as stream:
        chunk = pq.ParquetFile(stream).metadata.row_group(0).column(column)
    return (
        chunk.dictionary_page_offset or chunk.data_page_offset
    ) + chunk.total_compressed_size // 2


def refused(call, *arguments, **options):
    """Return the one line with which a call is refused."""
    with pytest.raises(ValueError, match=r".+: .+; .+") as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(directory, manifest):
    """Read each row once."""
    reader = Reader(directory, manifest, global_batch=8, lanes=2, seed=0)
    return [reader.batch(step) for step in range(ROWS // 8)]


@pytest.mark.parametrize("model", [None, MODEL], ids=["tokens", "labels"])
def test_a_shard_with_changed_bytes_is_named_wherever_it_is_read(tmp_path, model):
    place = Location.of(tmp_path / "artifact" / "train")
    manifest = write(place, rows(ROWS, L, model), model, files=2, group=8)
    assert len(read(place, manifest)) == ROWS // 8
    shard = place / "001.parquet"
    flip(shard.path, middle(shard, 1), 8)  # of the tokens, which all read
    check_shards(place, manifest)  # it is as long as it was
    said = refused(read, place, manifest)
    assert said.startswith(f"{shard}: the shard is damaged (")
    assert said.endswith(f"; delete {tmp_path / 'artifact'} and give the same command again")
    if model is None:
        for windows in (joined_windows(place, manifest, 8, 8), evaluate._windows(place)):
            assert refused(list, windows).startswith(f"{shard}: the shard is damaged (")
    assert refused(read_all, place, manifest["kind"]).startswith(f"{shard}: the shard is damaged (")


def test_written_token_shards_have_checksums(tmp_path):
    plan = plan_source(DataConfig(source="task:copy", sequence_length=16))
    unit = plan.split("validation")[0]
    (tmp_path / "validation").mkdir()
    work = tokens.Work(plan.config, plan.tokenizer, Location.of(tmp_path))
    record = work._write(unit, plan.unit_fingerprints[unit.index])
    ((name, found),) = record.shards.items()
    shard = Location.of(tmp_path / "validation" / name)
    assert found["bytes"] == shard.size()
    assert found["rows"] == pq.read_metadata(shard.path).num_rows
    flip(shard.path, middle(shard, 0), 8)
    vocabulary = plan.tokenizer.vocabulary
    own = {"kind": "tokens", "sequence_length": 16, "vocabulary": vocabulary, "targets": True}
    write_manifest(shard.parent, own, record.shards)
    assert refused(read_all, shard.parent).startswith(f"{shard}: the shard is damaged (")


def test_a_manifest_that_was_cut_is_named(tmp_path):
    place = Location.of(tmp_path / "artifact" / "train")
    write(place, rows(ROWS, L))
    file = place / "manifest.json"
    for content in (file.read_bytes()[:-20], b"[]", b'{"kind": "tokens"}', b"\xff"):
        file.write_bytes(content)
        said = refused(open_manifest, place, "tokens")
        assert re.match(rf"{file}: .*; delete {tmp_path / 'artifact'} and give the same co", said)


def test_an_artifacts_manifest_that_was_cut_is_named(tmp_path):
    arguments: tuple[Any, ...] = (
        location_of(Location.of(tmp_path), "tokens", "mark"),
        {},
        [],
        lambda location: {},
        lambda location: nullcontext(),
    )
    made = make(*arguments)
    assert read_manifest(made.location) == made.manifest
    file = made.location / "manifest.json"
    for content in (file.read_bytes()[:-20], b"{}", b"[]"):
        file.write_bytes(content)
        said = refused(make, *arguments)
        assert said.startswith(f"{file}: damaged (")
        assert said.endswith("; delete it and give the same command again")
    file.delete()
    assert make(*arguments).resumed


def test_an_artifacts_changed_weights_are_named(tmp_path):
    place = Location.of(tmp_path)
    weights = {"rnn.a": torch.randn(40), "b": torch.randn(3)}
    digest = write_weights(place, weights)
    file = tmp_path / "model.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert (tmp_path / "model.sha256").read_text() == f"{digest}  model.safetensors\n"
    assert torch.equal(load_weights(place, "rnn.")["a"], weights["rnn.a"])
    flip(file, file.stat().st_size - 20, 1)
    said = refused(load_weights, place)
    assert said == (
        f"{place}: model.safetensors is damaged: its SHA-256 is not {digest[:12]}...; "
        "delete this directory and give the same command again"
    )
    (tmp_path / "model.sha256").unlink()  # as in artifacts of an earlier version
    assert len(load_weights(place)) == 2
    file.write_bytes(file.read_bytes()[:-1])
    assert "model.safetensors is truncated or of another kind; del" in refused(load_weights, place)
    file.unlink()
    assert "model.safetensors is missing; delete" in refused(load_weights, place)


def test_an_exported_rnns_changed_weights_are_named(tmp_path):
    place = Location.of(tmp_path)
    save_rnn(RNN(MODEL, 256), place, ByteTokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    file = tmp_path / "model.safetensors"
    assert config["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "model.sha256").unlink()  # it stays behind in the artifact
    load_rnn(tmp_path)
    flip(file, file.stat().st_size - 100)
    said = refused(load_rnn, tmp_path)
    assert said.startswith(f"model={tmp_path}: model.safetensors is damaged: its SHA-256 is not ")
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_rnn(tmp_path)  # as exported by an earlier version


def test_damaged_metrics_are_named_with_the_line(tmp_path):
    place = Location.of(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    said = refused(read_metrics, place)
    assert re.fullmatch(
        rf"{tmp_path}/metrics.jsonl: damaged \(line 2: .*\); delete that line", said
    )


def test_a_damaged_config_of_a_run_is_named(tmp_path):
    config, place = RunConfig(), Location.of(tmp_path)
    whole = yaml.safe_dump(config.to_dict(), sort_keys=False)
    (tmp_path / "config.yaml").write_text(whole)
    check_same_run(config, place, overwrite=False)
    for content in (b"a: [", b"- 1", b"\xff\xfe\x00", b"teacher: 3", whole.encode()[:-30] + b"{"):
        (tmp_path / "config.yaml").write_bytes(content)
        said = refused(check_same_run, config, place, overwrite=False)
        assert said.startswith(f"{tmp_path}/config.yaml: damaged (")
        assert said.endswith("; give --overwrite to write it anew")
        check_same_run(config, place, overwrite=True)


def test_a_damaged_record_of_a_sweep_is_named(tmp_path):
    file = Location.of(tmp_path) / "sweep.yaml"
    for content in (b"a: [", b"- 1", b"\xff\xfe\x00", b"arguments: []"):
        file.write_bytes(content)
        assert refused(read_record, file).startswith(f"{file}: damaged (")


def test_a_damaged_record_of_a_trial_or_point_is_named(tmp_path):
    records = Records(Location.of(tmp_path))
    records.write(Entry(id="000", fields={}))
    assert [entry.id for entry in records.all()] == ["000"]
    for content in (b'{"id": "0', b"[]", b'{"id": "000", "colour": 1}'):
        (tmp_path / "000.json").write_bytes(content)
        for call in (records.all, lambda: records.read("000")):
            said = refused(call)
            assert said.startswith(f"{tmp_path}/000.json: damaged (")
            assert said.endswith("; delete it and give the same command again")
    point = Location.of(tmp_path / "points")
    kept(point, "one", {}, dict)
    (file,) = point.files()
    file.write_bytes(b"{")
    assert refused(kept, point, "one", {}, dict).startswith(f"{file}: damaged (")
