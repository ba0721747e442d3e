"""Training by Ray Train: killed, stopped and gone on with, it ends as if nothing had happened."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from smt_ray.data.storage import Location
from smt_ray.train.checkpoint import Checkpoint
from smt_ray.train.host import InProcess
from smt_ray.train.loop import train
from smt_ray.train.trainer import fit
from tests.ray.driver import CONFIG, KILLED, RUNTIME, SLOW, STEPS, prepare, program

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

ROOT = Path(__file__).parents[2]
VALIDATE = CONFIG.optimizer.validate_every


def read_rows(directory):
    """Return the figures of metrics.jsonl but times: rows of training, and of validation."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    apart = ("stage", "time/", "rate/")
    kept = [{k: v for k, v in row.items() if not k.startswith(apart)} for row in lines]
    return [r for r in kept if "loss/total" in r], [r for r in kept if "validation/loss" in r]


def checkpoints(directory):
    return sorted(p for p in (directory / "train").iterdir() if p.name.startswith("step-"))


def wait_for(file, process):
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_run_that_was_killed_and_stopped_ends_like_a_whole_one(tmp_path, caplog):
    plain = prepare(tmp_path)
    whole, harmed = tmp_path / "whole", tmp_path / "harmed"
    figures = fit(plain, RUNTIME, Location.of(whole).make_dir())

    training, validation = read_rows(whole)
    assert [row["step"] for row in training] == [*range(1, STEPS + 1)]
    assert [row["step"] for row in validation] == [*range(0, STEPS, VALIDATE), STEPS]
    assert validation[-1]["validation/loss"] < validation[0]["validation/loss"]
    assert all(row["norm/gradient"] > 0 for row in training)
    assert figures["steps"] == STEPS
    assert figures["tokens_per_s"] > 0
    best = min(validation, key=lambda row: row["validation/loss"])
    assert figures["validation_loss"] == best["validation/loss"]
    assert figures["best_step"] == best["step"]
    assert list((whole / "tensorboard").glob("events*"))
    ranked = sorted(validation, key=lambda row: row["validation/loss"])
    kept = {int(path.name[5:]) for path in checkpoints(whole)}
    assert kept == {row["step"] for row in ranked[:2]} | {STEPS}
    weights = load_file(whole / "model.safetensors")
    saved = Checkpoint(whole / "train" / f"step-{best['step']:09d}").weights()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)

    address = ray.get_runtime_context().gcs_address
    harmed.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.ray.driver", str(tmp_path), address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "slow", driver)
    assert (tmp_path / "killed").exists()
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    (tmp_path / "stopped").touch()
    assert driver.returncode == 130, said
    stop = Checkpoint(checkpoints(harmed)[-1]).step
    lines = said.splitlines()
    lost = re.search(r"^dmt: lost a worker after step \d+; going on from step (\d+)$", said, re.M)
    assert lost, said
    assert lost[1] in {"0", "20"}  # the controller may not have noted the checkpoint of step 20 yet
    assert "SIGINT: saving a checkpoint, then stopping; once more ends at once" in lines
    assert lines[-1] == f"dmt: stopped at step {stop}; the same command goes on from there"
    assert "Traceback" not in said
    assert KILLED < SLOW < stop < STEPS
    assert [row["step"] for row in read_rows(harmed)[0]] == [*range(1, stop + 1)]
    assert not (harmed / "model.safetensors").exists()

    # The machine went down before the last checkpoint was on its disk.
    before, last = checkpoints(harmed)[-2:]
    weights_of_rank_1 = last / "weights-00001.safetensors"
    os.truncate(weights_of_rank_1, weights_of_rank_1.stat().st_size - 8)
    with caplog.at_level("INFO"):
        again = fit(program(tmp_path, str(tmp_path)), RUNTIME, Location.of(harmed))
    reason = f"{weights_of_rank_1}: truncated"
    assert f"dmt: skipped an unfinished or damaged checkpoint: {reason}" in caplog.text
    assert f"going on from step {int(before.name[5:])} of {STEPS}" in caplog.text
    for rows, expected in zip(read_rows(harmed), (training, validation), strict=True):
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-5, abs=1e-5)
    for name in ("steps", "best_step", "validation_loss"):
        assert again[name] == pytest.approx(figures[name], rel=1e-5)
    found = load_file(harmed / "model.safetensors")
    assert set(found) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)

    # Once more, as after a kill between the last checkpoint and the end; on another world size.
    one = dataclasses.replace(RUNTIME, workers=1)
    assert fit(plain, one, Location.of(harmed)) == again
    assert [len(rows) for rows in read_rows(harmed)] == [len(training), len(validation)]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    plain = prepare(tmp_path)
    config = CONFIG.override("dmt.learning-rate", 1e30).override("runtime.workers", 1)
    bad = dataclasses.replace(plain, config=config)
    said = (
        r"^dmt: loss/total.* not finite at step (\d+); lower its learning-rate=1e\+30, or raise "
        r"optimizer.skip-nonfinite=0 to leave such steps out \(rank 0 had the sequences "
        r"\d+(, \d+){7}; the last checkpoint is of step 0\)$"
    )
    with pytest.raises(ValueError, match=said):
        fit(bad, config.runtime, Location.of(tmp_path / "bad").make_dir())
    assert [path.name for path in checkpoints(tmp_path / "bad")] == ["step-000000000"]


class WithoutSteps(InProcess):
    """This process, which leaves steps out."""

    def skipped(self):
        return [33]


def test_a_step_that_is_not_finite_is_left_out_as_often_as_may_be(tmp_path, caplog):
    plain = prepare(tmp_path)
    host = WithoutSteps()
    train(plain, host, RUNTIME)
    expected = {r["step"]: r["loss/total"] for r in host.rows_of_metrics if "loss/total" in r}
    assert [*expected] == [step for step in range(1, STEPS + 1) if step != 33]

    config = CONFIG.override("optimizer.skip-nonfinite", 1)
    runtime = dataclasses.replace(RUNTIME, max_failures=0)
    once = dataclasses.replace(plain, config=config, bad=(33,))
    with caplog.at_level("INFO"):
        fit(once, runtime, Location.of(tmp_path / "once").make_dir())
    training, _ = read_rows(tmp_path / "once")
    assert {row["step"]: row["loss/total"] for row in training} == pytest.approx(expected, rel=1e-4)
    assert json.loads((tmp_path / "once" / "skipped.json").read_text()) == {"steps": [33]}
    assert re.search(
        r"dmt: loss/total, .* not finite at step 33, which is left out, after step \d+; going on "
        r"from step 25",
        caplog.text,
    )

    twice = dataclasses.replace(once, bad=(33, 35))
    with pytest.raises(ValueError, match=r"not finite at step 35; .*skip-nonfinite=1 to leave "):
        fit(twice, runtime, Location.of(tmp_path / "twice").make_dir())
