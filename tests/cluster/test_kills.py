"""The whole chain on S3, with kills in three stages; the result is that of an undisturbed run."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smt_ray.data.storage import Location
from tests.cluster.head import ROOT, free_port, wait

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

KEY, SECRET = "AKIAWHOLECHAIN", "hush+that/is=secret"
STEPS, EVERY = 300, 25
ARGUMENTS = (
    *("--data.sequence-length=16", "--loss.horizon=2", "--loss.timesteps=1", "--model.width=8"),
    *("--model.memory-tokens=2", "--model.heads=2", "--model.encoder-depth=1"),
    *("--model.register-depth=1", "--model.cell-depth=1", "--labels.fraction=0.5"),
    *(f"--optimizer.validate-every={STEPS}", "--optimizer.validation-sequences=32"),
    *(f"--teacher.steps={STEPS}", "--transition.steps=10", f"--dmt.steps={STEPS}"),
    *("--evaluation.sequences=32", "--evaluation.sample-length=8", "--runtime.device=cpu"),
    *("--runtime.workers=2", "--runtime.gang-ranks=2", "--runtime.gang-batch=8"),
    f"--runtime.checkpoint-every={EVERY}",
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Serve S3 on the loopback interface; yield a URI with credentials."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        uri = f"s3://{KEY}:{SECRET.replace('/', '%2F').replace('+', '%2B')}@bucket"
        wait(lambda: made(f"{uri}?{options}&allow_bucket_creation=true"), 60)
        yield f"{uri}/runs?{options}"
        server.terminate()


def made(uri: str) -> bool:
    with suppress(OSError):
        Location.of(uri).make_dir()
        return True
    return False


@pytest.fixture
def short() -> Iterator[Path]:
    """Make a directory whose path leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        yield Path(place)


@dataclass
class Job:
    """The main job on one storage, with a Ray of its own."""

    source: Path
    storage: str
    place: Path
    number: int = 0

    def start(self) -> subprocess.Popen[bytes]:
        self.number += 1
        self.place.mkdir(exist_ok=True)
        command = [sys.executable, "jobs/pretrain_lm.py", "--storage", self.storage, *ARGUMENTS]
        environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
        environment |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TMPDIR": str(self.place)}
        with open(self.place / f"{self.number}.log", "wb") as log:
            return subprocess.Popen(
                [*command, "--data.source", str(self.source)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        """What the last one printed."""
        return (self.place / f"{self.number}.log").read_text()

    def artifact(self, stage: str) -> Location:
        (found,) = (
            place
            for place in (Location.of(self.storage) / "artifacts").directories()
            if place.name.startswith(f"{stage}-")
        )
        return found

    def files(self, stage: str, suffix: str) -> list[Location]:
        """Return the files of an artifact, none if there is no such artifact yet."""
        with suppress(ValueError):
            return self.artifact(stage).files(suffix, recursive=True)
        return []

    def step(self, stage: str) -> int:
        """Return the last step of a training's latest checkpoint."""
        found = [file.parent.name for file in self.files(stage, "state.json")]
        return max((int(name.removeprefix("step-")) for name in found), default=0)


def kill(driver: subprocess.Popen[bytes], title: str) -> None:
    """Kill one of the processes that Ray gives this title."""
    for process in psutil.Process(driver.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(title):
                process.send_signal(signal.SIGKILL)
                return
    raise AssertionError(f"no process {title}")


def weights(job: Job) -> dict[str, str]:
    """Return the SHA-256 of every stage's weights."""
    stages = ("teacher", "transition", "dmt", "export")
    files = [file for stage in stages for file in job.files(stage, "model.safetensors")]
    assert len(files) >= len(stages)
    return {
        "/".join(file.path.split("/")[-2:]): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def labels(job: Job, split: str) -> pa.Table:
    """Return the labels of a split, sorted by their sequences."""
    files = (job.artifact("labels") / split).files(".parquet")
    tables = [pq.read_table(file.path, filesystem=file.filesystem) for file in files]
    return pa.concat_tables(tables).sort_by("sequence_id")


def figures(job: Job) -> dict[str, Any]:
    """Return the summary but for times."""
    summary = (Location.of(job.storage) / "tiny" / "summary.json").read_json()
    return {
        name: value
        for name, value in summary.items()
        if "second" not in name and not name.endswith("per_s") and name != "resumed"
    }


def test_kills_change_nothing_and_the_secret_stays_with_the_command(bucket, short, tmp_path):
    source = tmp_path / "text.txt"
    source.write_bytes((Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes())
    harmed = Job(source, bucket, short / "s3")
    whole = Job(source, str(tmp_path / "runs"), short / "local")

    driver = harmed.start()
    wait(lambda: harmed.step("teacher") >= EVERY, 300)
    kill(driver, "ray::RayTrainWorker")
    wait(lambda: "going on from step" in harmed.said and harmed.step("teacher") >= 4 * EVERY, 300)
    driver.kill()
    driver.wait()
    assert harmed.step("teacher") < STEPS

    driver = harmed.start()
    wait(lambda: bool(harmed.files("labels", ".parquet")), 600)
    kill(driver, "ray::Rank")
    wait(lambda: harmed.step("dmt") >= 2 * EVERY, 600)
    kill(driver, "ray::RayTrainWorker")
    assert driver.wait(900) == 0, harmed.said
    assert "Traceback" not in harmed.said
    lost = r"labels: rank \d on node \S+ \(process \d+\) is gone.*its gang is built again \(1 in"
    assert re.search(lost, harmed.said)
    assert "dmt: lost a worker" in harmed.said

    assert whole.start().wait(900) == 0, whole.said
    assert weights(harmed) == weights(whole)
    for split in ("train", "validation"):
        ours, others = labels(harmed, split), labels(whole, split)
        assert len(ours) == len(set(ours["sequence_id"].to_pylist())) > 0
        assert ours.equals(others)
    assert figures(harmed) == figures(whole)
    assert json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())["rnn_bits"] < 8

    left = Location.of(bucket).files(recursive=True)
    assert {"report.html", "config.yaml", "metrics.jsonl"} <= {file.name for file in left}
    contents = [(file.path, file.read_bytes()) for file in left]
    on_disk = [file for file in harmed.place.rglob("*") if file.is_file()]
    contents += [(str(file), file.read_bytes()) for file in on_disk]
    secrets = (SECRET.encode(), SECRET.replace("/", "%2F").replace("+", "%2B").encode())
    assert [name for name, content in contents if any(one in content for one in secrets)] == []
