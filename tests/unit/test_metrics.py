"""Metrics of a stage: what a second try keeps, and what Weights & Biases is told."""

import json
import struct
import sys
from urllib.parse import urlsplit

import pytest
import wandb

from smt_ray.cluster.weights_and_biases import check_wandb
from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.train.metrics import MetricsLog, read_metrics

CONFIG = RunConfig(name="first")


@pytest.fixture
def place(tmp_path):
    return Location.of(tmp_path / "teacher-0123").make_dir()


@pytest.fixture
def offline(monkeypatch):
    """Weights & Biases without a server."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_second_try_drops_the_rows_after_its_step(place):
    for done, losses in ((0, {1: 3.0, 2: 2.0, 3: 1.5}), (2, {3: 1.75, 4: 1.0})):
        log = MetricsLog(CONFIG, place, "teacher", done)
        for step, loss in losses.items():
            log.add(step, {"loss/total": loss})
        log.close()
    rows = read_metrics(place)
    assert [(row["step"], row["loss/total"]) for row in rows] == [
        *((1, 3.0), (2, 2.0), (3, 1.75), (4, 1.0))
    ]
    assert {row["stage"] for row in rows} == {"teacher"}
    assert len((place / "tensorboard").files()) == 2


def test_weights_and_biases_is_told_every_row(place, offline):
    config = CONFIG.override("runtime.wandb-project", "rnns")
    check_wandb("rnns")
    log = MetricsLog(config, place, "teacher", 0)
    log.add(25, {"loss/total": 2.5})
    log.add(50, {"loss/total": 1.25, "validation/loss": 2.0})
    log.close()
    (file,) = (
        file
        for file in (place / "wandb").files("run-teacher-0123.wandb", recursive=True)
        if "offline-run-" in file.path
    )
    records = list(read_wandb(file.read_bytes()))
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.run_id, run.run_group) == ("rnns", "teacher-0123", "first")
    kept = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert kept["model"] == config.to_dict()["model"]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in h.item}
        for h in (record.history for record in records if record.HasField("history"))
    ]
    told = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
    assert told == [
        {"step": 25, "loss/total": 2.5},
        {"step": 50, "loss/total": 1.25, "validation/loss": 2.0},
    ]


def read_wandb(content):
    """Yield the records of a `.wandb` file: LevelDB's log format, each record in one chunk."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    at = 7
    while at < len(content):
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        assert kind == 1
        yield Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length


def test_without_the_extra_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb("")
    with pytest.raises(
        ValueError, match=r"^runtime.wandb-project=rnns: needs the extra wandb; pip"
    ):
        check_wandb("rnns")


def test_without_a_login_the_mend_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"^runtime.wandb-project=rnns: not logged in .*API_KEY"):
        check_wandb("rnns")
    file = tmp_path / ".netrc"
    host = urlsplit(wandb.Settings().base_url).hostname
    file.write_text(f"machine {host} login user password {'0' * 40}")
    file.chmod(0o600)
    check_wandb("rnns")
    file.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    check_wandb("rnns")
