"""A Ray head beside any other: own ports, own files, own token; and the client's way to it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DEFAULT_ADDRESS = Path("/tmp/ray/ray_current_cluster")  # what other drivers on this machine join


@dataclass
class Head:
    """A Ray head of this test's own, and the client's way to it."""

    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def client(self, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run `ray ...` from the root of the project."""
        return subprocess.run(
            ["ray", *map(str, arguments)],
            cwd=ROOT,
            env=self.environment | changes,
            capture_output=True,
            text=True,
            timeout=2400,
        )

    def submit(self, name: str, *command: object, wait: bool = True, **changes: str) -> str:
        """Submit a job as the documentation says; return what was said."""
        options = ["--runtime-env", "jobs/runtime_env.yaml", "--submission-id", name]
        options += [] if wait else ["--no-wait"]
        result = self.client(
            *("job", "submit", "--working-dir", ".", *options, "--", *command), **changes
        )
        return result.stdout + result.stderr

    def logs(self, name: str) -> str:
        """Return the output of a job so far."""
        return self.client("job", "logs", name).stdout

    def end_of(self, name: str) -> str:
        """Return how a job ended: `succeeded`, `failed` or `was stopped`."""
        result = self.client("job", "status", name)
        found = re.search(f"Job '{name}' ([a-z ]+)", result.stdout + result.stderr)
        assert found, result
        return found[1]

    def ask(self, path: str) -> Any:
        """Return what the dashboard answers."""
        token = (self.home / ".ray" / "auth_token").read_text()
        request = urllib.request.Request(
            f"{self.environment['RAY_API_SERVER_ADDRESS']}{path}",
            headers={"Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def actors(self, name: str) -> list[dict[str, Any]]:
        """Return what the dashboard says of the living actors of a class."""
        wanted = {"class_name": name, "state": "ALIVE"}
        query = "&".join(
            f"filter_keys={key}&filter_predicates=%3D&filter_values={value}"
            for key, value in wanted.items()
        )
        return self.ask(f"/api/v0/actors?{query}")["data"]["result"]["result"]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def launched(
    command: Callable[[Path, int], list[str]], settings: dict[str, str], **pipes: Any
) -> Iterator[Head]:
    """Run the command that starts a head; in the end, end everything that it started.

    Args:
        command: given a place for files and the dashboard's port, returns the command.
        settings: of Ray, in the environment of all its processes.
        pipes: of the command's process.
    """
    before = DEFAULT_ADDRESS.read_text() if DEFAULT_ADDRESS.exists() else None
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        home, dashboard = Path(place), free_port()
        scripts = sysconfig.get_path("scripts")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "HOME": place,
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": place,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            **settings,
        }
        subprocess.run(
            ["ray", "get-auth-token", "--generate"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with (
            open(home / "start.log", "w") as log,
            subprocess.Popen(
                command(home, dashboard),
                cwd=ROOT,
                env=environment,
                text=True,
                **{"stdout": log, "stderr": log} | pipes,
            ) as process,
        ):
            head = Head(home, environment, process)
            try:
                wait(lambda: head.client("job", "list").returncode == 0, 900)
                yield head
            finally:
                end(process)
    assert before == (DEFAULT_ADDRESS.read_text() if DEFAULT_ADDRESS.exists() else None)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    for left in psutil.wait_procs(started, timeout=10)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def wait(condition, seconds):
    """Wait until `condition()` holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(1)
