"""Claims: one holder at a time, and none that outlives its process."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from smt_ray.distributed.claims import claimed

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@ray.remote(num_cpus=0, max_retries=0)
def hold(name: str, seconds: float) -> tuple[float, float]:
    """Hold a claim for a while; return from when to when."""
    with claimed(name):
        began = time.time()
        time.sleep(seconds)
        return began, time.time()


@ray.remote(num_cpus=0, max_retries=0)
def die_holding(name: str, sign: Path) -> None:
    with claimed(name):
        sign.touch()
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_holds_a_claim_at_a_time_and_another_name_is_free():
    first, second = sorted(ray.get([hold.remote("one", 0.5) for _ in range(2)]))
    assert first[1] <= second[0]
    with claimed("one"):
        ray.get(hold.remote("two", 0), timeout=60)


def test_the_claim_of_a_holder_that_dies_is_free(tmp_path):
    dying = die_holding.remote("three", tmp_path / "held")
    while not (tmp_path / "held").exists():
        time.sleep(0.05)
    with claimed("three"), pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(dying, timeout=60)
