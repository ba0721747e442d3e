"""Locks: one holder at a time in a storage, and none that outlives its process."""

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from pyarrow import fs

from smt_ray.data.storage import Location
from smt_ray.pipeline import locks
from smt_ray.pipeline.locks import locked

ROOT = Path(__file__).parents[2]
HOLD = """
import logging, sys, time
from pyarrow import fs
from smt_ray.data.storage import Location
from smt_ray.pipeline import locks

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
locks.BEAT_S = locks.POLL_S = 0.1
locks.SETTLE_S = 0.5
root, run, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
place = Location.of(root) / "thing"
if "objects" in sys.argv:
    place = Location(fs.SubTreeFileSystem(root, fs.LocalFileSystem()), "thing")
with locks.locked(place, run):
    print(time.time(), flush=True)
    time.sleep(seconds)
    sys.stdin.read()
    print(time.time(), flush=True)
"""


def start(root, run, seconds, *words):
    """Start a process that locks `thing` until its stdin ends, and says when it had it."""
    command = [sys.executable, "-c", HOLD, str(root), run, str(seconds), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def held(tmp_path):
    """A process that holds the lock; it is killed at the end."""
    process = start(tmp_path, "first", 600)
    assert process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def _fast(monkeypatch):
    monkeypatch.setattr(locks, "POLL_S", 0.02)
    monkeypatch.setattr(locks, "PATIENCE", 20)
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)


@pytest.mark.parametrize("words", [(), ("objects",)])
def test_one_process_holds_a_claim_at_a_time_and_the_others_say_for_whom_they_wait(tmp_path, words):
    first = start(tmp_path, "one", 0, *words)
    began = float(first.stdout.readline())
    others = [start(tmp_path, run, 0.5, *words) for run in ("two", "three")]
    for other in others:
        assert re.fullmatch(
            rf"thing: made by run 'one' \(\S+, pid {first.pid}\) since \d{{4}}-\d\d-\d\d "
            r"\d\d:\d\d; waiting for it\n",
            other.stderr.readline(),
        )
    ended = float(first.communicate(timeout=60)[0])
    with ThreadPoolExecutor(2) as pool:  # the one that comes last waits for the other's end
        said = list(pool.map(lambda other: other.communicate(timeout=60)[0], others))
    times = [tuple(map(float, out.split())) for out in said]
    assert [process.returncode for process in (first, *others)] == [0, 0, 0]
    times = sorted([(began, ended), *times])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_killed_holder_is_free_at_once(tmp_path, held, caplog):
    caplog.set_level(logging.INFO, locks.__name__)
    held.kill()
    while psutil.Process(held.pid).status() != psutil.STATUS_ZOMBIE:  # its id is still taken
        time.sleep(0.01)
    began = time.monotonic()
    with locked(Location.of(tmp_path) / "thing", "second"):
        assert time.monotonic() - began < locks.PATIENCE * locks.POLL_S / 4
    assert re.fullmatch(r"thing: run 'first' \(.*\) since .* is gone; going on", caplog.messages[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_fast")
def test_a_holder_that_stands_still_on_this_machine_is_waited_for(tmp_path, held):
    held.send_signal(signal.SIGSTOP)
    taken = threading.Event()

    def take():
        with locked(Location.of(tmp_path) / "thing", "second"):
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(3 * locks.PATIENCE * locks.POLL_S)
    held.kill()
    thread.join()
    assert taken.is_set()


def elsewhere(file, **changes):
    """Say in a lock's file that its holder is on another machine."""
    about = json.loads(file.read_text()) | {"machine": "another", **changes}
    file.write_text(json.dumps(about))


@pytest.mark.usefixtures("_fast")
def test_a_holder_elsewhere_is_dead_when_its_file_no_longer_changes(tmp_path, held):
    file = tmp_path / "thing.lock"
    held.kill()
    held.wait()
    before = json.loads(file.read_text())
    elsewhere(file)
    began = time.monotonic()

    def beat():
        for number in range(10):
            time.sleep(0.2)
            elsewhere(file, beat=str(number))

    thread = threading.Thread(target=beat)
    thread.start()
    with locked(Location.of(tmp_path) / "thing", "second"):
        assert time.monotonic() - began > 2
        assert json.loads(file.read_text())["token"] != before["token"]
    thread.join()


@pytest.mark.usefixtures("_fast")
def test_a_half_written_claim_does_not_hold_for_ever(tmp_path):
    (tmp_path / "thing.lock").touch()
    with locked(Location.of(tmp_path) / "thing", "second"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_lost_its_claim_while_it_stood_still_goes_on_with_nothing(tmp_path, held):
    file = tmp_path / "thing.lock"
    held.send_signal(signal.SIGSTOP)
    elsewhere(file, token="another's", run="second", pid=7)
    held.send_signal(signal.SIGCONT)
    _, said = held.communicate(timeout=60)
    assert held.returncode == 1
    assert re.fullmatch(
        r"error: thing: this process stood still, and it went to run 'second' \(.*, pid 7\) since "
        r".*; stopping\n",
        said,
    )
    assert json.loads(file.read_text())["token"] == "another's"  # it is not for this one to free


def test_a_claim_is_kept_alive_and_made_anew_where_its_file_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.02)
    file = tmp_path / "thing.lock"
    with locked(Location.of(tmp_path) / "thing", "first"):
        seen = set()
        for _ in range(20):
            time.sleep(0.02)
            seen.add(file.read_bytes())
        assert len(seen) > 3
        assert len({len(content) for content in seen}) == 1  # it needs no room on a full disk
        file.unlink()
        time.sleep(0.5)
        assert json.loads(file.read_text())["run"] == "first"
        assert json.loads(file.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_claim_is_freed_on_errors(tmp_path, error):
    with pytest.raises(error), locked(Location.of(tmp_path) / "thing", "first"):  # noqa: PT012
        assert (tmp_path / "thing.lock").exists()
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_fast")
def test_object_stores_are_claimed_after_all_writers_have_settled(tmp_path):
    place = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "thing")
    began = time.monotonic()
    with locked(place, "first"):
        assert time.monotonic() - began >= locks.SETTLE_S
    assert list(tmp_path.iterdir()) == []
