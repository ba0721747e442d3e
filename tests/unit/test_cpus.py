"""CPUs that a container leaves a process: files of control groups as the kernel shows them."""

import math

import pytest

from smt_ray.cluster.cpus import quota, usable_cpus

UNIFIED = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "150000 100000\n"}
LEGACY = {
    "proc/self/cgroup": "5:cpu,cpuacct:/job/step\n4:memory:/job\n1:name=systemd:/\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "400000\n",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
}
STEP = "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        (UNIFIED, 1.5),
        (UNIFIED | {"sys/fs/cgroup/job/cpu.max": "max 100000\n"}, math.inf),
        # A group below may say more than the one above leaves it.
        (
            UNIFIED
            | {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/cpu.max": "800000 100000\n",
            },
            1.5,
        ),
        # In a container: its own group is what is mounted, and the host's path is not there.
        (
            {
                "proc/self/cgroup": "0::/kubepods/pod7/abc\n",
                "sys/fs/cgroup/cpu.max": "200000 100000",
            },
            2.0,
        ),
        (LEGACY, 4.0),
        (LEGACY | {f"{STEP}quota_us": "-1\n", f"{STEP}period_us": "100000\n"}, 4.0),
        (LEGACY | {f"{STEP}quota_us": "100000\n", f"{STEP}period_us": "100000\n"}, 1.0),
        (
            {
                "proc/self/cgroup": "3:cpu:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
    ],
)
def test_the_smallest_quota_of_all_groups_counts(files, expected, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert quota(tmp_path) == expected


def test_slurm_allots_a_task_fewer(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert usable_cpus() == 1
