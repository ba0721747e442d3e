"""What this machine gives a run: CPUs, and a place for Ray's files."""

import os
import re
import subprocess
import sys

import pytest

COUNT = """
import os
from smt_ray.cluster.cpus import usable_cpus

most = usable_cpus()
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(most, usable_cpus())
"""


@pytest.mark.parametrize(
    ("allotted", "expected"), [("", "all 1"), ("1", "1 1"), ("0", "1 1"), ("1(x2)", "all 1")]
)
def test_cpus_are_those_that_the_process_may_use(allotted, expected):
    usable = str(len(os.sched_getaffinity(0)))
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=os.environ | {"SLURM_CPUS_ON_NODE": allotted},
        capture_output=True,
        text=True,
        check=True,
    )
    most, one = done.stdout.split()
    assert int(most) <= int(usable)  # a container's quota may be lower
    assert one == "1"
    assert most == "1" or expected.startswith("all")


@pytest.mark.parametrize("place", ["a-file", "long" * 30])
def test_ray_without_a_place_for_its_files_is_answered_in_one_line(place, tmp_path):
    (tmp_path / "a-file").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from smt_ray.cluster.local import start; start(1, 1)"],
        env=os.environ | {"RAY_TMPDIR": str(tmp_path / place)},
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(
        rf"ValueError: RAY_TMPDIR={tmp_path / place}: Ray cannot start there \([^\n]+\); give "
        "RAY_TMPDIR a short directory that can be written",
        done.stderr.splitlines()[-1],
    )
