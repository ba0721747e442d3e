"""Signals: the first one saves and stops, the second one ends, and `timeout`'s echo is neither."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from smt_ray.pipeline.command_line import GOES_ON, reported
from smt_ray.cluster import interruption
from smt_ray.terminal import configure_logging

configure_logging()
with reported(GOES_ON):
    with interruption.saving(lambda: sys.argv[1] == "saves"):
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def job(request):
    """Start a job that waits; with `saves`, it has something to save and never gets it done."""
    word = request.param
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, word],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def ended(process):
    """Return the exit status, and the lines on standard error."""
    said = process.communicate(timeout=30)[1]
    assert "Traceback" not in said
    return process.returncode, said.splitlines()


@pytest.mark.parametrize("job", ["nothing"], indirect=True)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_has_nothing_to_save_stops_at_once_in_one_line(job, number, status):
    job.send_signal(number)
    line = f"stopped by {signal.Signals(number).name}; the same command goes on from here"
    assert ended(job) == (status, [line])


@pytest.mark.parametrize("job", ["saves"], indirect=True)
def test_a_second_signal_ends_at_once_but_an_echo_does_not(job):
    job.send_signal(signal.SIGINT)
    time.sleep(0.1)
    job.send_signal(signal.SIGINT)  # as a process and its group are told, one after the other
    time.sleep(1.5)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    status, lines = ended(job)
    assert status == 143
    assert [re.sub(";.*", "", line) for line in lines] == [
        "SIGINT: saving a checkpoint, then stopping",
        "SIGTERM again: ending at once",
    ]
