"""What a run answers to bad input before there is any cluster: field, value, mend in one line."""

import logging
import re
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.pipeline.artifacts import MANIFEST, Artifact
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.planning import label_bytes, label_bytes_to_write
from smt_ray.pipeline.run import Run, run
from smt_ray.pipeline.run_directory import check_same_run
from tests.samples import MODEL, VOCABULARY, rows, write

ROOT = Path(__file__).parents[2]
LENGTH = 8
SOURCE = f"{sysconfig.get_path('stdlib')}/argparse.py"


@pytest.fixture
def config(tmp_path):
    """A configuration whose source and storage are good."""
    text = tmp_path / "argparse.txt"
    text.write_bytes(Path(SOURCE).read_bytes())
    return RunConfig().update(
        {
            "storage": str(tmp_path / "storage"),
            "data": {"source": str(text), "sequence_length": LENGTH},
            "loss": {"timesteps": 2, "horizon": 2},
            "model": {name: getattr(MODEL, name) for name in MODEL.__slots__},
            "teacher": {"global_batch": 16},
        }
    )


def refused(call, *arguments, **options):
    """Return the one line with which a call is refused."""
    with pytest.raises(ValueError, match=r"^\S+=.*[:;]") as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no .txt, .jsonl, .parquet, .npy file is there; give such files, `stdlib` or hf:"),
        ("", "all of its 1 files are empty"),
        ("short", "its train split has 4 tokens, but one sequence needs 9; add text or lower data"),
    ],
)
def test_a_missing_empty_or_short_source_starts_nothing(config, tmp_path, text, message):
    source = tmp_path / "given.txt"
    if text is not None:
        source.write_text(text)
    said = refused(run, config.override("data.source", str(source)))
    assert said.startswith(f"data.source='{source}': {message}")
    assert not (tmp_path / "storage").exists()


def test_storage_below_a_file_or_in_proc_is_not_writable(config, tmp_path):
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file" / "runs"), "/proc/runs"):
        said = refused(run, config.override("storage", place))
        assert re.fullmatch(rf"storage={place}: not writable \(.+\); choose another", said)


def test_labels_must_fit_the_disk(config):
    huge = config.update({"model": {"memory_tokens": 1 << 20, "width": 1 << 20, "heads": 1}})
    said = refused(run, huge)
    assert said.startswith(f"storage={config.storage}: ")
    found = re.search(r"([\d,]+\.\d) GiB of labels will not fit in the ([\d,]+\.\d) GiB", said)
    assert found
    need, free = (float(number.replace(",", "")) for number in found.groups())
    size = Path(config.data.source).stat().st_size
    assert need == pytest.approx(size * 2**40 * 2 / 2**30, rel=1e-3)
    assert need > free
    assert list(Path(config.storage).iterdir()) == []
    assert "labels.fraction" in said


def test_labels_that_are_written_need_no_room(config):
    need = label_bytes(config, Path(config.data.source).stat().st_size)
    this = Run.of(config)
    assert set(this.locations()) == {"tokens"}  # where labels lie depends on what the tokens hold
    assert label_bytes_to_write(config, this.source, this.locations()) == need
    tokens = this.locations()["tokens"].make_dir()
    (tokens / MANIFEST).write_json({"figures": {"digest": "0123"}, "seconds": 0})
    labels = this.locations()["labels"]
    assert label_bytes_to_write(config, this.source, this.locations()) == need
    write(labels / "train", rows(32, LENGTH, MODEL), MODEL)
    written = (labels / "train" / "000.parquet").size()
    assert label_bytes_to_write(config, this.source, this.locations()) == need - written
    (labels / MANIFEST).write_json({})
    assert label_bytes_to_write(config, this.source, this.locations()) == 0
    assert not this.is_finished()
    for location in this.locations().values():
        (location.make_dir() / MANIFEST).write_json({"figures": {"digest": "0123"}, "seconds": 0})
    assert this.is_finished()


def test_another_config_under_a_name_needs_overwrite(config):
    directory = (Location.of(config.storage) / config.name).make_dir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    other = config.override("teacher.learning-rate", 0.5)
    said = refused(run, other)
    rate = config.teacher.learning_rate
    assert said == (
        f"teacher.learning-rate=0.5: run 'tiny' has teacher.learning-rate={rate}; choose another "
        "--name, or give --overwrite to point this name at a new run"
    )
    check_same_run(other, directory, overwrite=True)
    check_same_run(config.override("runtime.workers", 1), directory, overwrite=False)
    assert [file.name for file in directory.files()] == ["config.yaml"]


def test_a_run_waits_for_another_of_its_name_and_is_then_compared_with_it(config, caplog):
    caplog.set_level(logging.INFO, "smt_ray")
    directory = Location.of(config.storage) / config.name
    with ThreadPoolExecutor(1) as pool:
        with locked(directory, config.name):
            waiting = pool.submit(run, config.override("teacher.learning-rate", 0.5))
            while not any("waiting for it" in line for line in caplog.messages):
                time.sleep(0.05)
            (directory.make_dir() / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
        with pytest.raises(ValueError, match=r"^teacher\.learning-rate=0\.5: run 'tiny' has t"):
            waiting.result(timeout=60)
    assert [file.name for file in directory.parent.files()] == []  # no lock is left


def test_the_job_exits_with_2_and_starts_no_ray(config, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "ray").mkdir()
    flags = ("--storage", tmp_path / "file" / "runs", "--data.source", config.data.source)
    result = subprocess.run(
        [sys.executable, "jobs/pretrain_lm.py", *map(str, flags)],
        cwd=ROOT,
        env={"RAY_TMPDIR": str(tmp_path / "ray")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert re.fullmatch(r"error: storage=\S+: not writable [^\n]+\n", result.stderr)
    assert result.stdout == ""
    assert list((tmp_path / "ray").iterdir()) == []


@pytest.fixture
def stages(config):
    """The stages of a run of which tokens, teacher and labels are there."""
    stages = Run.of(config).stages()
    for stage in ("tokens", "teacher", "labels"):
        manifest = {"figures": {"vocabulary": VOCABULARY}, "seconds": 0}
        place = stages.storage / "artifacts" / f"{stage}-made"
        stages.made[stage] = Artifact(stage, f"{stage}-mark", place, manifest, True, False)
    for split in ("train", "validation"):
        write(stages.made["tokens"].location / split, rows(32, LENGTH))
        labels = stages.made["labels"].location / split
        write(labels, rows(32, LENGTH, MODEL), MODEL, encoder="teacher-mark")
    return stages


def test_a_truncated_token_shard_is_named(stages):
    shard = Path((stages.made["tokens"].location / "validation" / "000.parquet").path)
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"^{shard}: the shard is truncated or foreign .*; del"):
        stages.teacher()


def test_a_foreign_token_shard_is_named(stages):
    place = stages.made["tokens"].location / "train" / "000.parquet"
    pq.write_table(pq.read_table(place.path).drop_columns(["bytes"]), place.path)
    with pytest.raises(ValueError, match=f"^{place}: the shard is truncated or foreign .*; delete"):
        stages.teacher()


def test_too_few_sequences_for_a_batch_are_named(stages):
    write(stages.made["tokens"].location / "validation", rows(15, LENGTH))
    said = refused(stages.teacher)
    assert said.startswith("teacher.global-batch=16: the validation split has only 15 sequences; ")


@pytest.mark.parametrize(
    ("field", "value"), [("encoder", "other"), ("width", 16), ("memory_tokens", 4)]
)
def test_labels_of_another_model_are_refused(stages, field, value):
    manifest = stages.made["labels"].location / "train" / MANIFEST
    manifest.write_json({**manifest.read_json(), field: value})
    with pytest.raises(ValueError, match=rf"^{manifest}: {field}={value!r}, but this run needs"):
        stages.transition()


def test_a_truncated_label_shard_is_named(stages):
    shard = Path((stages.made["labels"].location / "train" / "000.parquet").path)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"^{shard}: the shard is truncated"):
        stages.transition()
