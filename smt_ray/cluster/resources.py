"""CPUs and GPUs: what there is, what a run takes of it, and what `auto` comes to."""

import os
from collections.abc import Mapping
from dataclasses import replace

import ray
import torch

from smt_ray.cluster.cpus import usable_cpus
from smt_ray.config import RunConfig

KINDS = ("CPU", "GPU")
DATA_CPUS = 2
"""CPUs that Ray Data's read and write tasks need beside the actors."""
ON_CPU = 2
"""Processes of a stage without GPUs, where `auto` says how many: logical CPUs may exceed cores."""


def processes(config: RunConfig) -> int:
    """Return the processes of the hungriest stage: workers, gang ranks, or both side by side."""
    runtime = config.runtime
    both = runtime.worker_count, runtime.gangs * runtime.rank_count
    return sum(both) if config.labels.mode == "stream" else max(both)


def cpus_needed(config: RunConfig) -> int:
    """Return the CPUs of the hungriest stage, and Ray Data's."""
    return processes(config) * config.runtime.threads + DATA_CPUS


def gpus_needed(config: RunConfig) -> int:
    """Return the GPUs of the hungriest stage."""
    return processes(config) if config.runtime.gpu else 0


def here() -> dict[str, float]:
    """Return what this machine has."""
    return {"CPU": usable_cpus(), "GPU": torch.cuda.device_count()}


def there() -> dict[str, float]:
    """Return what the joined cluster has, or can grow to."""
    now, grown = ray.cluster_resources(), limits()
    return {kind: max(now.get(kind, 0), grown.get(kind, 0)) for kind in KINDS}


def limits() -> dict[str, int]:
    """Return what an autoscaler's configuration lets the cluster grow to; empty without one."""
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def resolved(config: RunConfig, resources: Mapping[str, float]) -> RunConfig:
    """Return the run with numbers in place of `auto`.

    Workers are as many as there are GPUs, but no more than any batch has sequences and the
    teacher's has groups: so the result is that of any other number. Gang ranks are as many, dealt
    out to the gangs.

    Args:
        config: the run.
        resources: what there is, by Ray's names; the GPUs count.
    """
    runtime = config.runtime
    gpus = int(resources.get("GPU", 0))
    device = runtime.device if runtime.device != "auto" else "gpu" if gpus else "cpu"
    most = max(1, gpus) if device == "gpu" else ON_CPU
    groups = config.teacher.global_batch // config.group
    most = min(most, groups, *(train.global_batch for train in config.stages().values()))
    workers, ranks = runtime.workers, runtime.gang_ranks
    workers = most if workers == "auto" else workers
    ranks = max(1, most // runtime.gangs) if ranks == "auto" else ranks
    runtime = replace(runtime, device=device, workers=workers, gang_ranks=ranks)
    return replace(config, runtime=runtime)


def fewest(config: RunConfig) -> RunConfig:
    """Return the run with as few workers as it starts with."""
    runtime = replace(config.runtime, workers=config.runtime.fewest_workers)
    return replace(config, runtime=runtime)


def check_room(config: RunConfig, resources: Mapping[str, float]) -> None:
    """Check that a cluster has enough CPUs and GPUs for the fewest workers.

    Raises:
        ValueError: in one line with the flags of a run that fits.
    """
    workers, config = config.runtime.workers, fewest(config)
    runtime = config.runtime
    fields = (
        f"runtime.workers={workers}, runtime.gangs={runtime.gangs}, "
        f"runtime.gang-ranks={runtime.gang_ranks}"
    )
    if runtime.threads > 1:
        fields += f", runtime.threads={runtime.threads}"
    need, have = cpus_needed(config), int(resources.get("CPU", 0))
    if have < need:
        flags = _smaller(config, (have - DATA_CPUS) // runtime.threads)
        raise ValueError(
            f"{fields}: need {need} CPUs, the cluster has {have}; "
            + (f"give {flags}, or " if flags else "")
            + f"start Ray with --num-cpus {need}"
        )
    need, have = gpus_needed(config), int(resources.get("GPU", 0))
    if have < need:
        flags, hidden = _smaller(config, have), os.environ.get("CUDA_VISIBLE_DEVICES")
        raise ValueError(
            f"runtime.device=gpu, {fields}: need {need} GPUs, the cluster has {have}"
            + (f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else "")
            + f"; give {f'{flags}, or ' if flags else ''}--runtime.device cpu"
        )


def _smaller(config: RunConfig, processes: int) -> str:
    """Return the flags that make of a run the largest one on so many processes; "" if none does."""
    runtime = config.runtime
    if processes < 1:
        return ""
    ranks = min(runtime.rank_count, processes)
    fields = {
        "workers": min(runtime.worker_count, processes),
        "gangs": min(runtime.gangs, processes // ranks),
        "gang_ranks": ranks,
    }
    changed = {k: v for k, v in fields.items() if v != getattr(runtime, k)}
    return " ".join(f"--runtime.{k.replace('_', '-')} {v}" for k, v in changed.items())
