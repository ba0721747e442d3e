"""The stage `labels`: killed, gone on with while a rank is killed, and run once more."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pyarrow import fs
from safetensors.torch import save, save_file

from smt_ray.config import DataConfig, LabelConfig, RunConfig, RuntimeConfig, TaskConfig
from smt_ray.data.manifest import MANIFEST, check_shards, open_manifest
from smt_ray.data.rows import to_columns
from smt_ray.data.shards import from_memory
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokens import write_tokens
from smt_ray.labels import factory as labels
from smt_ray.labels import label_shards
from smt_ray.labels.gang import release
from smt_ray.model.encoder import build_encoder
from tests.ray.processes import kill, titled
from tests.samples import MODEL, VOCABULARY, random_weights, read_all, rows, tokens_of, write

pytestmark = pytest.mark.ray

LENGTH = 16
CONFIG = RunConfig(
    data=DataConfig(sequence_length=LENGTH),
    model=MODEL,
    labels=LabelConfig(fraction=0.8),
    runtime=RuntimeConfig(device="cpu", gang_ranks=2, gang_batch=6),
)
ROWS = {"train": 330, "validation": 48}


@pytest.fixture
def root(tmp_path):
    """Tokens and a teacher's weights, on a file system other than the local one."""
    for split, count in ROWS.items():
        write(Location.of(tmp_path / "tokens" / split), rows(count, LENGTH), files=3, group=50)
    weights = {f"encoder.{name}": value for name, value in encoder().state_dict().items()}
    (tmp_path / "teacher").mkdir()
    save_file(weights, tmp_path / "teacher" / "model.safetensors")
    return Location(fs.SubTreeFileSystem(str(tmp_path.parent), fs.LocalFileSystem()), tmp_path.name)


def encoder():
    return random_weights(build_encoder(MODEL, VOCABULARY))


def test_killed_label_runs_go_on_and_label_each_sequence_once(ray_session, root, monkeypatch):
    monkeypatch.setattr(label_shards, "LEAST", 6)  # a shard for about every batch of the gang
    target = root / "labels"
    arguments = (CONFIG, root / "tokens", root / "teacher", "teacher0", VOCABULARY, target)

    def run():
        label_shards.LEAST = 6
        return labels.write_labels(*arguments)

    driver = ray.remote(num_cpus=0, max_retries=0)(run).remote()
    wait_for_shards(target, 3)
    kill("ray::run")
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(driver)
    kept = shards(target)
    assert kept
    assert not (target / "train" / MANIFEST).exists()

    # The killed driver was no job of its own, whose end would free its gangs. While its labeller
    # lives, it would build a gang that is released once more.
    until = time.monotonic() + 60
    while titled("ray::Labeller") or titled("ray::Rank"):
        assert time.monotonic() < until
        time.sleep(0.1)
    for name in groups("CREATED"):
        release(name)
    killer = threading.Thread(target=kill_one_of_each, args=(target, len(kept)), daemon=True)
    killer.start()
    figures = run()
    killer.join()
    check_labels(root, "train")
    check_labels(root, "validation")
    assert kept <= shards(target)
    assert figures["labels"] == LENGTH * sum(
        open_manifest(target / split, "labels")["sequences"] for split in ROWS
    )
    assert figures["labels_per_s"] > 0
    assert figures["gang_rebuilds"] >= 2
    assert not groups("CREATED")
    assert groups("REMOVED")
    assert not without_restarts()

    everything = shards(target)
    manifest = (target / "validation" / MANIFEST).read_json()
    target.filesystem.delete_file((target / "validation" / MANIFEST).path)
    run()
    assert shards(target) == everything
    assert (target / "validation" / MANIFEST).read_json() == manifest


def test_labels_keep_the_targets_of_examples(ray_session, root):
    task = TaskConfig(sequences=320)
    data = DataConfig(
        source="task:copy", sequence_length=LENGTH, task=task, validation_fraction=0.1
    )
    runtime = RuntimeConfig(device="cpu", gang_ranks=1, gang_batch=160)
    config = RunConfig(data=data, model=MODEL, runtime=runtime)
    examples, target = root / "examples", root / "labels"
    write_tokens(plan_source(data), examples)
    network = random_weights(build_encoder(MODEL, 17))
    weights = {f"encoder.{name}": value for name, value in network.state_dict().items()}
    (root / "teacher" / "model.safetensors").write_bytes(save(weights))
    labels.write_labels(config, examples, root / "teacher", "teacher0", 17, target)
    manifest = open_manifest(examples / "train", "tokens")
    assert manifest["targets"] == LENGTH // 2
    tokens = read(examples / "train", manifest)
    targets = {"targets": manifest["targets"]}
    found = read(target / "train", open_manifest(target / "train", "labels", **targets))
    assert found.select(tokens.column_names).equals(tokens)  # same rows, same order
    with torch.no_grad():
        alone = network(torch.from_numpy(tokens_of(tokens, 17)))
    memory = memories(found)
    torch.testing.assert_close(memory.float(), alone, atol=1e-5, rtol=2**-8)
    shard = (target / "train").files(".parquet")[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    check_shards(target / "train", open_manifest(target / "train", "labels"))
    with pytest.raises(ValueError, match=rf"^{shard}: the shard is damaged \(.*; delete {target} "):
        read_all(target / "train", "labels")


def test_too_small_a_fraction_is_refused(root):
    config = CONFIG.override("labels.fraction", 0.1)
    rule = r"^labels\.fraction=0\.1: leaves fewer validation sequences than one global batch of 32"
    with pytest.raises(ValueError, match=rule):
        labels.write_labels(
            config, root / "tokens", root / "teacher", "teacher0", VOCABULARY, root / "labels"
        )


def groups(state):
    """Return the names of the placement groups in a state."""
    table = ray.util.placement_group_table().values()
    return {group["name"] for group in table if group["state"] == state}


def without_restarts():
    """Return the actors of which Ray notes, once in a process, that their arguments may be lost."""
    node: Any = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path()).glob("python-core-*.log")
    pattern = r"Actor with class name: '(.*?)'.* has constructor arguments in the object store"
    return {name for log in logs for name in re.findall(pattern, log.read_text())}


def check_labels(root, split):
    """Compare every label with the encoder in one process, rounded to bf16."""
    directory = root / "labels" / split
    manifest = open_manifest(
        directory, "labels", encoder="teacher0", vocabulary=VOCABULARY, dtype="bfloat16"
    )
    check_shards(directory, manifest)
    found = read(directory, manifest)
    tokens = read(root / "tokens" / split, (root / "tokens" / split / MANIFEST).read_json())
    chosen = tokens.filter(
        pa.array(label_shards.keep(tokens["sequence_id"].to_numpy(), CONFIG.labels.fraction))
    )
    assert 0.7 < len(chosen) / len(tokens) < 0.9
    assert found["sequence_id"].equals(chosen["sequence_id"])
    assert found["tokens"].equals(chosen["tokens"])

    windows = torch.from_numpy(tokens_of(chosen))
    with torch.no_grad():
        alone = encoder()(windows[:, :-1])
    memory = memories(found)
    torch.testing.assert_close(memory.float(), alone, atol=1e-5, rtol=2**-8)
    assert (memory == alone.bfloat16()).float().mean() > 0.999


def memories(table):
    columns = {name: value.copy() for name, value in to_columns(table).items()}
    return from_memory(columns, MODEL.memory_tokens, MODEL.width, "bfloat16")


def read(directory, manifest):
    files = [(directory / name).path for name in manifest["shards"]]
    return pa.concat_tables(pq.read_table(f, filesystem=directory.filesystem) for f in files)


def shards(target):
    return {file.path for split in ROWS for file in (target / split).files(".parquet")}


def wait_for_shards(target, count):
    """Wait until as many training shards are written whole."""
    while len((target / "train").files(".parquet")) < count:
        time.sleep(0.02)


def kill_one_of_each(target, written):
    """Kill a rank, and some shards later the owner of its gang."""
    wait_for_shards(target, written + 3)
    kill("ray::Rank")
    wait_for_shards(target, written + 6)
    kill("ray::Labeller")
