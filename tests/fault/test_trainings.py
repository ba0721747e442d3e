"""A training whose rank is lost, taken away or stopped ends like one in a single process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smt_ray.train.host import InProcess
from smt_ray.train.loop import train
from tests.fault.runs import Cost
from tests.ray.driver import CONFIG, RUNTIME, STEPS, prepare

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

EVERY, VALIDATED = RUNTIME.checkpoint_every, CONFIG.optimizer.validate_every
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def whole(place):
    """The losses by step of a training in this process."""
    (place / "whole").mkdir()
    host = InProcess()
    train(prepare(place / "whole"), host, RUNTIME)
    return losses(host.rows_of_metrics)


def losses(rows):
    found = [(row["step"], row["loss/total"]) for row in rows if "loss/total" in row]
    assert [step for step, _ in found] == [*range(1, STEPS + 1)]
    return dict(found)


def harmed(place, harm, workers, timeout_s=600.0):
    """Train with harm; return the losses by step, what was said, and what the harm has cost."""
    place.mkdir()
    prepare(place)
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_TMPDIR"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fault.trainings",
            str(place),
            harm,
            workers,
            str(timeout_s),
        ],
        cwd=ROOT,
        env=own | SETTINGS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    rows = (place / "harmed" / "metrics.jsonl").read_text().splitlines()
    seconds = (place / "recovered").stat().st_mtime - (place / "struck").stat().st_mtime
    restart = re.search(r"after step (\d+); going on from step (\d+)", done.stdout)
    assert restart, done.stdout
    cost = Cost(round(seconds, 1), int(restart[1]) - int(restart[2]), 0, 0)
    return losses(map(json.loads, rows)), done.stdout, cost


@pytest.mark.parametrize("harm", ["remove", "raylet"])
def test_workers_that_go_leave_the_others_to_go_on(harm, place, whole, note):
    found, said, cost = harmed(place / harm, harm, "1:2")
    assert found == pytest.approx(whole, rel=1e-4)
    assert "dmt: lost a worker after step" in said
    assert cost.steps_lost <= EVERY  # the others go on until they notice, and may save once more
    assert (place / harm / "rank-0-of-1").exists()
    note(cost)


def test_a_notice_saves_at_once_and_the_node_costs_no_failure(place, whole, note):
    found, said, cost = harmed(place / "drain", "drain", "1:2")
    note(cost)
    assert found == pytest.approx(whole, rel=1e-4)
    restart = re.search(r"dmt: lost a worker after step \d+; going on from step (\d+)", said)
    assert restart, said
    rows = map(json.loads, (place / "drain" / "harmed" / "metrics.jsonl").read_text().splitlines())
    saved = [row["step"] for row in rows if "time/checkpoint_s" in row]
    early = [step for step in saved if step % EVERY and step % VALIDATED and step < STEPS]
    assert len(early) == 1, saved
    assert 30 < early[0] <= int(restart[1])


def test_a_stopped_rank_is_named_and_killed(place, whole, note):
    found, said, cost = harmed(place / "stop", "stop", "2", timeout_s=15.0)
    assert found == pytest.approx(whole, rel=1e-4)
    pid = (place / "stop" / "stopped").read_text()
    line = rf"dmt: rank 1 on node \S+ \(process {pid}\) did not answer for \d+ s after step \d+; "
    assert re.search(line + "going on from step 25", said), said
    note(cost)
