"""Faults in every stage: the same command goes on, and no row is lost or there twice."""

import contextlib
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from smt_ray.cluster.interruption import ECHO_S
from smt_ray.data.storage import Location
from tests.fault.driver import EVERY
from tests.fault.runs import away
from tests.s3 import SLOW_DOWN, served

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

TRAINED = ("teacher", "transition", "dmt")
SHARDED = ("tokens", "labels")


@pytest.mark.parametrize("stage", ["tokens", "teacher", "labels", "dmt"])
def test_a_killed_driver_goes_on_where_it_was(stage, child, whole, note):
    run = child(stage)
    run.start()
    run.midway(stage)
    run.kill()
    before, step = run.progress(stage), run.step(stage)
    run.start()
    seconds = run.recovered(stage, before)
    assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    steps = 0
    if stage in TRAINED:
        found = re.search(r"going on from step (\d+) of", run.said)
        assert found, run.said
        # Of the checkpoint that was being written, its state may be there and not its weights.
        resumed = int(found[1])
        assert step - EVERY <= resumed
        steps = step + EVERY - resumed
        assert run.losses(stage) == whole.losses(stage)
    note(run.cost(whole, seconds, steps))
    for made in SHARDED:
        if run.artifact(made):
            assert run.rows(made).equals(whole.rows(made))


TRAINERS = {
    "teacher": [("Board", signal.SIGKILL), ("TrainController", signal.SIGKILL)],
    "dmt": [("RayTrainWorker", signal.SIGKILL), ("RayTrainWorker", signal.SIGSTOP)],
}


@pytest.mark.parametrize("stage", TRAINERS)
def test_a_training_goes_on_when_one_of_its_processes_is_lost(stage, child, whole, note):
    # Heartbeats come first: half of `timeout_s` without one.
    run = child(stage, RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S="20")
    run.start()
    costs = {}
    for title, number in TRAINERS[stage]:
        before = run.midway(stage, run.step(stage) + 1)
        run.signal_one(f"ray::{title}", number)
        costs[f"{title} {number.name}"] = run.recovered(stage, before + EVERY)
    assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    for title, number in TRAINERS[stage]:
        note(run.cost(whole, costs[f"{title} {number.name}"], EVERY), f"{title} {number.name}")
    assert run.losses(stage) == whole.losses(stage)
    if stage == "dmt":
        assert "dmt: lost a worker" in run.said
        assert re.search(r"dmt: rank 0 on node \S+ \(process \d+\) did not answer", run.said)
    else:
        assert "teacher: lost Ray Train's controller after step" in run.said


LABELLERS = [
    ("Rank", signal.SIGKILL),
    ("Rank", signal.SIGSTOP),
    ("Labeller", signal.SIGKILL),
    ("Map", signal.SIGKILL),
    ("Meter", signal.SIGKILL),
]


def test_labelling_goes_on_when_one_of_its_processes_is_lost(child, whole, note):
    run = child("labels")
    run.start()
    costs = {}
    for title, number in LABELLERS:
        before = run.midway("labels", run.progress("labels") + 1)
        run.signal_one(f"ray::{title}", number)
        costs[f"{title} {number.name}"] = run.recovered("labels", before + 2)  # two are in flight
    assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    for what, seconds in costs.items():
        note(run.cost(whole, seconds), what)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_run_whose_ray_is_killed_ends_and_goes_on(name, child, whole, note):
    run = child("teacher", RAY_gcs_rpc_server_reconnect_timeout_s="5")
    run.start()
    before = run.midway("teacher")
    with run.ending():
        run.signal_one(name)
        assert run.wait() not in (0, None), run.said
    run.start()
    seconds = run.recovered("teacher", before)
    assert run.wait() == 0, run.said
    assert run.losses("teacher") == whole.losses("teacher")
    note(run.cost(whole, seconds, EVERY))


@pytest.mark.parametrize("stage", ["tokens", "teacher", "labels"])
def test_a_storage_that_is_moved_away_is_waited_for(stage, child, whole, note):
    run = child(stage)
    run.start()
    before = run.midway(stage)
    with away(Path(run.storage), 20):
        pass
    seconds = run.recovered(stage, before)
    assert run.wait() == 0, run.said
    note(run.cost(whole, 20 + seconds))


@pytest.mark.parametrize("stage", ["teacher", "labels"])
def test_an_object_store_that_is_too_busy_is_waited_for(stage, child, whole, note):
    with served() as s3:
        run = child(stage, s3.uri("bucket/runs"))
        run.start()
        before = run.midway(stage)
        with s3.refusing(lambda *request: SLOW_DOWN):
            time.sleep(20)
        seconds = run.recovered(stage, before)
        assert run.wait() == 0, run.said
        assert s3.refused
        note(run.cost(whole, 20 + seconds))


def test_an_object_store_that_is_gone_is_waited_for(child, whole, note):
    with served() as s3:
        run = child("dmt", s3.uri("bucket/runs"))
        run.start()
        before = run.midway("dmt")
        s3.stop()
        time.sleep(20)
        s3.start()
        seconds = run.recovered("dmt", before)
        assert run.wait() == 0, run.said
        assert run.losses("dmt") == whole.losses("dmt")
        note(run.cost(whole, 20 + seconds))


SIGNALLED = {
    "tokens": signal.SIGINT,
    "teacher": signal.SIGTERM,
    "labels": signal.SIGTERM,
    "dmt": signal.SIGINT,
}


@pytest.mark.parametrize(("stage", "number"), SIGNALLED.items(), ids=SIGNALLED)
def test_a_signal_stops_it_in_one_line_and_it_goes_on(stage, number, child, whole, note):
    run = child(stage)
    run.start()
    before = run.midway(stage)
    run.send(number)
    assert run.wait() == 128 + number, run.said
    assert "Traceback" not in run.said
    assert "goes on from" in run.said.splitlines()[-1]
    run.start()
    seconds = run.recovered(stage, before)
    assert run.wait() == 0, run.said
    if stage in TRAINED:
        assert run.losses(stage) == whole.losses(stage)
    note(run.cost(whole, seconds))


def test_a_second_signal_ends_at_once(child, whole, note):
    run = child("teacher")
    run.start()
    before = run.midway("teacher")
    with run.ending():
        run.signal_one("ray::RayTrainWorker", signal.SIGSTOP)  # nothing can be saved
        time.sleep(2)  # the driver looks each second whether there is anything to save
        run.send(signal.SIGINT)
        time.sleep(2 * ECHO_S)
        began = time.monotonic()
        run.send(signal.SIGINT)
        assert run.wait() == 128 + signal.SIGINT, run.said
        assert time.monotonic() - began < 2
    assert run.said.splitlines()[-1] == "SIGINT again: ending at once"
    run.start()
    seconds = run.recovered("teacher", before)
    assert run.wait() == 0, run.said
    note(run.cost(whole, seconds, EVERY))


@pytest.fixture
def small(tmp_path):
    """A file system of 4 MiB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("stage", ["tokens", "teacher", "labels"])
def test_a_full_disk_is_one_line_and_goes_on_when_there_is_room(stage, child, whole, note, small):
    run = child(stage, str(small / "runs"))
    run.start()
    before = run.midway(stage)
    fill(small / "filler")
    assert run.wait() == 2, run.said
    assert run.said.count("error: ") == 1
    assert "no space left" in run.said.splitlines()[-1]
    assert "Traceback" not in run.said
    (small / "filler").unlink()
    run.start()
    seconds = run.recovered(stage, before)
    assert run.wait() == 0, run.said
    note(run.cost(whole, seconds))


def fill(file):
    """Take all room that is left."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as handle:
        for size in (1 << 16, 1 << 10):
            with contextlib.suppress(OSError):
                while True:
                    handle.write(bytes(size))


DAMAGED = {
    "a token shard": ("tokens", "train/*.parquet", "teacher"),
    "a label shard": ("labels", "train/*.parquet", "transition"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_truncated_file_is_one_line_that_names_it(case, child, whole, note):
    damaged, pattern, stage = DAMAGED[case]
    run = child(stage)
    file = next(Path(run.storage).glob(f"artifacts/{damaged}-*/{pattern}"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    run.start()
    assert run.wait() == 2, run.said
    said = run.said.splitlines()[-1]
    assert said.startswith("error: ")
    assert str(file) in said
    assert "Traceback" not in run.said
    file.write_bytes(content)
    run.start()
    seconds = run.recovered(stage, 0)
    assert run.wait() == 0, run.said
    note(run.cost(whole, seconds))


def test_a_truncated_checkpoint_is_passed_over(child, whole, note):
    run = child("teacher")
    run.start()
    before = run.midway("teacher", 3 * EVERY)
    run.kill()
    latest = f"/step-{run.step('teacher'):09d}/"
    files = [file for file in run.files("teacher") if latest in file]
    name = next(file for file in files if file.endswith(".safetensors"))
    damaged = Location.of(name)
    damaged.write_bytes(damaged.read_bytes()[:100])
    run.start()
    seconds = run.recovered("teacher", before)
    assert run.wait() == 0, run.said
    assert "skipped an unfinished or damaged checkpoint" in run.said
    note(run.cost(whole, seconds, 2 * EVERY))


def test_a_foreign_file_among_shards_changes_nothing(child, whole, note):
    run = child("transition")
    for place in Path(run.storage).glob("artifacts/*/train"):
        (place / "notes.txt").write_text("not a shard")
        (place / ".nfs0001").write_text("left by a file system")
    run.start()
    seconds = run.recovered("transition", 0)
    assert run.wait() == 0, run.said
    note(run.cost(whole, seconds))
