"""Job submission from start to end: a head with a token, a job that is stopped and goes on."""

import json
import re
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.head import Head, free_port, launched, wait

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

STEPS = 1500
ARGUMENTS = (
    *("--data.sequence-length", "16", "--loss.horizon", "2", "--loss.timesteps", "1"),
    *("--model.width", "8", "--model.memory-tokens", "1", "--model.heads", "2"),
    *("--model.encoder-depth", "1", "--model.register-depth", "1", "--model.cell-depth", "1"),
    *("--optimizer.validate-every", str(STEPS), "--optimizer.validation-sequences", "64"),
    *("--teacher.steps", str(STEPS), "--transition.steps", "5", "--dmt.steps", "5"),
    *("--labels.fraction", "0.1", "--runtime.device", "cpu", "--runtime.workers", "1"),
    *("--runtime.gang-ranks", "1", "--runtime.checkpoint-every", "50"),
)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a head of this module's own."""

    def command(place: Path, dashboard: int) -> list[str]:
        ports = {"port": free_port(), "ray-client-server-port": free_port()}
        ports |= {"dashboard-port": dashboard, "dashboard-agent-listen-port": free_port()}
        words = ["ray", "start", "--head", "--block", "--num-cpus", "8", "--temp-dir", str(place)]
        words += ["--dashboard-host", "127.0.0.1", "--disable-usage-stats"]
        return words + [f"--{name}={port}" for name, port in ports.items()]

    with launched(command, {}) as head:
        yield head


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Four modules of the standard library as a source."""
    place = tmp_path_factory.mktemp("text")
    for name in ("argparse", "ast", "inspect", "typing"):
        code = (Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_bytes()
        (place / f"{name}.txt").write_bytes(code)
    return place


def test_without_the_token_nothing_is_submitted(head, tmp_path):
    said = head.submit("none", "true", HOME=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert "Missing authentication token" in said
    assert "none" not in head.client("job", "list").stdout


def test_driver_and_workers_run_the_uploaded_tree(head):
    script = (
        "import os, ray, smt_ray; ray.init(); "
        "where = ray.remote(lambda: (smt_ray.__file__, sorted(os.listdir('.')))); "
        "print('FOUND', smt_ray.__file__, *ray.get(where.remote()))"
    )
    said = head.submit("where", "python", "-c", script)
    (line,) = (line for line in said.splitlines() if line.startswith("FOUND"))
    driver, worker, *names = line.removeprefix("FOUND ").split(maxsplit=2)
    assert driver == worker
    assert driver.startswith(str(head.home))
    assert {"'jobs'", "'smt_ray'"} <= set(names[0].strip("[]").split(", "))
    unwanted = (".git'", ".venv", "runs", "cache", "egg-info")
    assert not any(name in names[0] for name in unwanted), names


def test_a_stopped_job_saves_and_goes_on_and_another_config_needs_overwrite(head, text, tmp_path):
    storage = tmp_path / "storage"
    command: tuple[object, ...] = ("python", "jobs/pretrain_lm.py", "--storage", storage)
    command += ("--data.source", text, *ARGUMENTS)

    head.submit("first", *command, wait=False)
    wait(lambda: steps(storage) >= 50, 300)
    stopped = steps(storage)
    assert head.client("job", "stop", "first").returncode == 0
    assert head.end_of("first") == "was stopped"
    said = head.logs("first")
    assert "SIGTERM: saving a checkpoint, then stopping" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert stopped <= steps(storage) < STEPS

    said = head.submit("second", *command)
    assert head.end_of("second") == "succeeded", said
    assert "teacher    finished in" in said
    assert "Traceback" not in said
    summary = json.loads((storage / "tiny" / "summary.json").read_text())
    assert summary["resumed"]
    assert summary["rnn_bits"] < 8
    rows = (storage / "tiny" / "metrics.jsonl").read_text().splitlines()
    teacher = [row["step"] for row in map(json.loads, rows) if row["stage"] == "teacher"]
    assert teacher == sorted(teacher)
    assert min(teacher) < stopped < max(teacher) == STEPS

    made = finished(storage)
    other = (*command, "--evaluation.sample-length", "9")
    said = head.submit("third", *other)
    assert head.end_of("third") == "failed"
    assert "error: evaluation.sample-length=9: run 'tiny' has evaluation.sample-length=" in said
    assert "Traceback" not in said
    said = head.submit("fourth", *other, "--overwrite")
    assert head.end_of("fourth") == "succeeded", said
    assert made.items() < finished(storage).items()


def test_two_jobs_on_one_storage_share_what_both_need(head, text, tmp_path):
    """The second waits for the first one's stages, and makes what is its own."""
    storage = tmp_path / "storage"
    command = ("python", "jobs/pretrain_lm.py", "--storage", storage, "--data.source", text)
    words = (*command, *ARGUMENTS, "--teacher.steps", "100", "--optimizer.validate-every", "100")
    own = {"one": (), "two": ("--transition.steps", "6")}

    def submit(name: str) -> str:
        return head.submit(name, *words, "--name", name, *own[name])

    with ThreadPoolExecutor(2) as pool:
        said = "".join(pool.map(submit, own))
    assert [head.end_of(name) for name in own] == ["succeeded"] * 2, said
    assert re.search(r"made by run '(one|two)' \(.*\) since .*; waiting for it", said)
    assert "Traceback" not in said
    made = [name.partition("-")[0] for name in finished(storage)]
    assert all(made.count(stage) == 1 for stage in ("tokens", "teacher", "labels")), made
    assert all(made.count(stage) == 2 for stage in ("transition", "dmt", "export")), made
    (metrics,) = storage.glob("artifacts/teacher-*/metrics.jsonl")
    steps_made = [row["step"] for row in map(json.loads, metrics.read_text().splitlines())]
    assert steps_made == sorted(steps_made)


def steps(storage: Path) -> int:
    """Return the last step of the teacher's latest checkpoint."""
    found = storage.glob("artifacts/teacher-*/train/step-*/state.json")
    return max((int(file.parent.name.removeprefix("step-")) for file in found), default=0)


def finished(storage: Path) -> dict[str, float]:
    """Return when each finished artifact was finished."""
    manifests = storage.glob("artifacts/*/manifest.json")
    return {file.parent.name: file.stat().st_mtime for file in manifests}
