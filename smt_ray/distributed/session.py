"""The Ray session of a run, and what must hold before any work starts on it."""

import logging
import os
import uuid
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from smt_ray.config import RunConfig, RuntimeConfig
from smt_ray.data.storage import Location

logger = logging.getLogger(__name__)
DATA_CPUS = 2
"""CPUs that Ray Data's read and write tasks need beside the actors."""
WORKER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def configure_logging() -> None:
    """Send the project's log lines to stderr as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("smt_ray")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)


def cpus_needed(runtime: RuntimeConfig) -> int:
    """Return the CPUs of the hungriest stage: the trainer's or the gangs', and Ray Data's."""
    return max(runtime.workers, runtime.gangs * runtime.gang_ranks) + DATA_CPUS


def gpus_needed(runtime: RuntimeConfig) -> int:
    """Return the GPUs of the hungriest stage."""
    return max(runtime.workers, runtime.gangs * runtime.gang_ranks) if runtime.gpu else 0


def connect(runtime: RuntimeConfig) -> None:
    """Join the cluster that this machine belongs to, or start one here.

    Logical CPUs of a cluster started here may exceed the cores: its workers set their own threads.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    cpus = max(os.cpu_count() or 1, cpus_needed(runtime))
    try:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    except ValueError:  # a cluster is there already: it has its own number of CPUs
        ray.init(**quiet)


def preflight(config: RunConfig, label_bytes: int) -> None:
    """Check resources, storage and disk before any work.

    Raises:
        ValueError: in one line that names the field, the value and the mend.
    """
    runtime, resources = config.runtime, ray.cluster_resources()
    have, need = int(resources.get("CPU", 0)), cpus_needed(runtime)
    if have < need:
        raise ValueError(
            f"runtime.workers={runtime.workers}, runtime.gangs={runtime.gangs}, "
            f"runtime.gang-ranks={runtime.gang_ranks}: need {need} CPUs, the cluster has {have}; "
            f"lower them or start Ray with --num-cpus {need}"
        )
    if gpus_needed(runtime) > resources.get("GPU", 0):
        raise ValueError(
            f"runtime.gpu=True: {gpus_needed(runtime)} GPUs needed, the cluster has "
            f"{resources.get('GPU', 0):.0f}; lower runtime.workers and runtime.gang-ranks"
        )
    storage = Location.of(config.storage)
    check_storage(storage)
    if label_bytes > (free := storage.free_bytes()):
        raise ValueError(
            f"storage={config.storage}: {label_bytes / 2**30:.1f} GiB of labels will not fit in "
            f"{free / 2**30:.1f} GiB; lower labels.fraction or choose another storage"
        )


def check_storage(storage: Location) -> None:
    """Write a marker here and read it on every node.

    Raises:
        ValueError: if the storage is not writable, or not shared by all nodes.
    """
    marker = storage / f".marker-{uuid.uuid4().hex}"
    try:
        storage.make_dir()
        marker.write_text("shared")
    except OSError as error:
        raise ValueError(
            f"storage={storage}: not writable ({error.strerror or error}); choose another"
        ) from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    seen = ray.get(
        [
            _sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(marker)
            for node in nodes
        ]
    )
    marker.filesystem.delete_file(marker.path)
    for node, sees in zip(nodes, seen, strict=True):
        if not sees:
            raise ValueError(
                f"storage={storage}: node {node['NodeManagerAddress']} does not see it; "
                "choose a directory or URI that all nodes share"
            )


@ray.remote(num_cpus=0)
def _sees(marker: Location) -> bool:
    return marker.exists()
