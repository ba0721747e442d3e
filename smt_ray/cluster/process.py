"""One process with what the trainer had on one node; it gets started, and a dead one replaced."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from smt_ray.cluster.cpus import usable_cpus
from smt_ray.cluster.launcher import forget_ranks
from smt_ray.config import RuntimeConfig

Result = TypeVar("Result")
PATIENCE_S = 60
"""Seconds after which a process that has no room is asked for with half of the CPUs."""

logger = logging.getLogger(__name__)


def run_alone(
    name: str, runtime: RuntimeConfig, function: Callable[..., Result], *arguments: Any
) -> Result:
    """Call `function(*arguments, threads)` in one process, and return what it returns.

    Args:
        name: what is run, for the log.
        runtime: workers, threads and device of the trainer, and the failures that are met.
        function: a function of a module.
        *arguments: all of its arguments but the last, the number of CPU threads.

    Raises:
        RuntimeError: if the process dies more than `runtime.max_failures` times.
    """
    failures = 0
    while True:
        process, cpus = _start(name, runtime)
        try:
            return ray.get(process.call.remote(function, *arguments, cpus=cpus))
        except RayActorError as error:
            failures += 1
            if failures > runtime.max_failures:
                raise RuntimeError(f"{name}: its process died {failures} times") from error
            logger.warning("%s: once more after %s", name, type(error).__name__)
        finally:
            ray.kill(process)


class _Process:
    def __init__(self) -> None:
        """Forget the ranks of whoever started this node: this process is alone."""
        forget_ranks(os.environ)

    def ready(self) -> None:
        """Answer once it has its resources."""

    def call(self, function: Callable[..., Result], *arguments: Any, cpus: int) -> Result:
        """Call the function with so many threads, or as many as its CPUs are, which are logical."""
        return function(*arguments, min(cpus, usable_cpus()))


def _start(name: str, runtime: RuntimeConfig) -> tuple[Any, int]:
    """Start a process, and return it with its CPUs; while there is no room, ask for less."""
    cpus, waited = cpus_at_most(runtime, ray.nodes()), 0
    while True:
        actor: Any = ray.remote(_Process).options(num_cpus=cpus, num_gpus=1 if runtime.gpu else 0)
        process = actor.remote()
        ready = process.ready.remote()
        while not ray.wait([ready], timeout=PATIENCE_S)[0]:
            waited += PATIENCE_S
            asked = f"{cpus} CPUs and a GPU" if runtime.gpu else f"{cpus} CPUs"
            logger.info("%s: waiting for %d s for a node with %s free", name, waited, asked)
            if cpus > 1:
                break
        else:
            return process, cpus
        ray.kill(process)
        cpus = min(cpus // 2, cpus_at_most(runtime, ray.nodes()))


def cpus_at_most(runtime: RuntimeConfig, nodes: Iterable[Mapping[str, Any]]) -> int:
    """Return how many CPUs a process may ask for: the workers', if one of the nodes has as many.

    Next to a GPU those of one worker are enough.

    Args:
        runtime: workers and device.
        nodes: `ray.nodes()`.
    """
    if runtime.gpu:
        return runtime.threads
    largest = max((node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]), default=0)
    return max(1, min(runtime.worker_count * runtime.threads, int(largest)))
