"""A sweep that is killed in the middle and gone on with: nothing finished is run again."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    *("--data.sequence-length=16", "--loss.horizon=2", "--loss.timesteps=1", "--model.width=8"),
    *("--model.memory-tokens=2", "--model.heads=2", "--model.encoder-depth=1"),
    *("--model.register-depth=1", "--model.cell-depth=1", "--teacher.steps=6"),
    *("--optimizer.validate-every=3", "--transition.steps=4", "--dmt.steps=4"),
    *("--labels.fraction=0.1", "--evaluation.sequences=16", "--evaluation.sample-length=8"),
    *("--runtime.device=cpu", "--runtime.workers=1", "--runtime.gang-ranks=1"),
    *("--name=killed", "--concurrent=1"),
)


def test_a_killed_sweep_keeps_its_finished_trials_and_runs_the_others(tmp_path):
    text = tmp_path / "argparse.txt"
    text.write_bytes((Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes())
    command = [sys.executable, "jobs/sweep.py", "--storage", str(tmp_path)]
    first = [*command, "--data.source", str(text), *ARGUMENTS, "--space=dmt.visits=2,4,8"]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
    environment |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
    with subprocess.Popen(first, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 1800
        while "finished" not in statuses(tmp_path):
            assert time.monotonic() < until
            assert killed.poll() is None
            time.sleep(0.2)
        killed.send_signal(signal.SIGKILL)
    before = statuses(tmp_path)
    assert before.count("finished") == 1
    assert not (tmp_path / "killed" / "summary.json").exists()
    written = finished_at(tmp_path)

    other = [*first, "--teacher.steps=7"]
    refused = subprocess.run(other, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: teacher.steps=7: sweep 'killed' has teacher.steps=6;")
    assert refused.stderr.count("\n") == 1

    again = [*command, "--resume", "--name", "killed"]
    done = subprocess.run(again, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 trials, of which 1 are done" in done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert (summary["trials"], summary["finished"], summary["label_sets"]) == (3, 3, 1)
    assert written.items() <= finished_at(tmp_path).items()
    assert done.stdout.count("finished") == 3


def statuses(storage: Path) -> list[str]:
    """Return how far each trial has come."""
    files = sorted((storage / "killed" / "trials").glob("*.json"))
    return [json.loads(file.read_text())["status"] for file in files]


def finished_at(storage: Path) -> dict[str, int]:
    """Return when each finished trial and artifact was written."""
    trials = [
        file
        for file in (storage / "killed" / "trials").glob("*.json")
        if json.loads(file.read_text())["status"] == "finished"
    ]
    files = [*trials, *storage.glob("artifacts/*/manifest.json")]
    return {str(file): file.stat().st_mtime_ns for file in files}
