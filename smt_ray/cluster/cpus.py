"""How many CPUs this process may use, which a container or a batch system may make fewer."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import joblib

ALLOTTED = ("SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK")


def usable_cpus() -> int:
    """Return how many: the least of affinity, control groups' quotas and SLURM's allotment."""
    limits = [float(joblib.cpu_count()), quota()]
    allotted = (os.environ.get(name, "") for name in ALLOTTED)
    limits += [float(count) for count in allotted if count.isdecimal()]
    return max(1, math.ceil(min(limits)))


def quota(root: Path = Path("/")) -> float:
    """Return how many CPUs the control groups of this process leave it; infinite without a limit.

    Each group above limits it as well. In a container the paths of the host need not be there:
    what is mounted is then its own group.

    Args:
        root: where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return math.inf
    found = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        if not controllers:
            found += [_unified(group / "cpu.max") for group in _groups(mounted, path)]
        elif "cpu" in controllers.split(","):
            places = (mounted / name for name in dict.fromkeys((controllers, "cpu")))
            found += [_legacy(group) for place in places for group in _groups(place, path)]
    return min(found)


def _groups(mounted: Path, path: str) -> Iterator[Path]:
    """Yield the directories of a group and of all above it."""
    group = PurePosixPath("/") / path
    for above in (group, *group.parents):
        yield mounted / str(above).lstrip("/")


def _unified(file: Path) -> float:
    """Return the CPUs of a `cpu.max`, version 2: `max 100000`, or microseconds of a period."""
    return _share(*_read(file).split()[:2])


def _legacy(group: Path) -> float:
    """Return the CPUs of a group of version 1, where a quota of -1 is none."""
    return _share(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _share(quota: str = "", period: str = "") -> float:
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return math.inf
    return int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
