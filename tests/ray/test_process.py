"""One process on one node: started where there is room, replaced when it dies."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from smt_ray.cluster import process
from smt_ray.cluster.cpus import usable_cpus
from smt_ray.cluster.process import run_alone
from smt_ray.config import RuntimeConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def threads_in(place: Path, threads: int) -> int:
    """Die the first time."""
    if not place.exists():
        place.touch()
        os._exit(1)
    return threads


def die(threads: int) -> None:
    os._exit(1)


def misuse(threads: int) -> None:
    raise ValueError("field=1: must be 2")


def test_a_process_that_dies_is_started_again(tmp_path):
    runtime = RuntimeConfig(device="cpu", workers=2, threads=3, max_failures=1)
    assert run_alone("test", runtime, threads_in, tmp_path / "begun") == min(6, usable_cpus())
    with pytest.raises(RuntimeError, match=r"^test: its process died 1 times$"):
        run_alone("test", replace(runtime, max_failures=0), die)
    with pytest.raises(ValueError, match="field=1: must be 2"):
        run_alone("test", runtime, misuse)


def test_without_room_for_all_it_runs_on_less(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "PATIENCE_S", 3)
    monkeypatch.setattr(process.logger, "propagate", True)

    @ray.remote(num_cpus=5)
    def busy():
        (tmp_path / "busy").touch()
        time.sleep(60)

    running = busy.remote()
    while not (tmp_path / "busy").exists():
        time.sleep(0.1)
    (tmp_path / "begun").touch()
    with caplog.at_level("INFO", process.logger.name):
        runtime = RuntimeConfig(device="cpu", workers=7)
        assert run_alone("test", runtime, threads_in, tmp_path / "begun") <= 3
    assert "test: waiting for 3 s for a node with 7 CPUs free" in caplog.text
    ray.cancel(running, force=True)
