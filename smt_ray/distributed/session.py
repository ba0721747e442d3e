"""The Ray session of a run, and what must hold before any work starts on it."""

import logging
import os
import signal
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

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
    # Keep freed memory: glibc would give each large tensor back and fault it in again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
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


def connect(runtime: RuntimeConfig, runs: int = 1) -> None:
    """Join the cluster that this machine belongs to, or start one here for `runs` runs at once.

    Logical CPUs of a cluster started here may exceed the cores: its workers set their own threads.
    """
    if ray.is_initialized():
        return
    _quiet_ray()
    cpus = max(os.cpu_count() or 1, runs * cpus_needed(runtime))
    # Processes that Ray starts at once, the cores by default; it warns of four times as many.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(cpus))
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(num_cpus=cpus, include_dashboard=False, **settings)
    except ValueError:  # a cluster is there already: it has its own number of CPUs
        ray.init(**settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _quiet_ray() -> None:
    """Keep all but errors of Ray's libraries off the terminal; its session's files have all."""
    import ray.data  # sets its logger up

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", module=r"ray\.data")


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Leave, as the handler of a signal; what is finished stays, and a second call goes on."""
    logger.info("stopped by %s; the same command goes on from here", signal.Signals(number).name)
    raise SystemExit(128 + number)


def check_storage(storage: Location, label_bytes: int) -> None:
    """Check, without a cluster, that the storage takes files and has room for the labels.

    Raises:
        ValueError: in one line that names the field, the value and the mend.
    """
    with _marker(storage):
        free = storage.free_bytes()
    if label_bytes > free:
        raise ValueError(
            f"storage={storage}: {label_bytes / 2**30:,.1f} GiB of labels will not fit in the "
            f"{free / 2**30:,.1f} GiB that are free; lower labels.fraction or choose another"
        )


def preflight(config: RunConfig) -> None:
    """Check the cluster before any work: its CPUs and GPUs, and that all nodes share the storage.

    Raises:
        ValueError: in one line that names the field, the value and the mend.
    """
    runtime, resources = config.runtime, ray.cluster_resources()
    fields = (
        f"runtime.workers={runtime.workers}, runtime.gangs={runtime.gangs}, "
        f"runtime.gang-ranks={runtime.gang_ranks}"
    )
    have, need = int(resources.get("CPU", 0)), cpus_needed(runtime)
    if have < need:
        raise ValueError(
            f"{fields}: need {need} CPUs, the cluster has {have}; "
            f"lower them or start Ray with --num-cpus {need}"
        )
    have, need = int(resources.get("GPU", 0)), gpus_needed(runtime)
    if have < need:
        raise ValueError(
            f"runtime.gpu=True, {fields}: need {need} GPUs, the cluster has {have}; "
            "lower them or give --runtime.no-gpu"
        )
    check_shared(Location.of(config.storage))


def check_shared(storage: Location) -> None:
    """Write a marker here and look for it on every node.

    Raises:
        ValueError: if the storage is not writable, or a node does not see the marker.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with _marker(storage) as marker:
        seen = ray.get(
            [
                _sees.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote(marker)
                for node in nodes
            ]
        )
    for node, sees in zip(nodes, seen, strict=True):
        if not sees:
            raise ValueError(
                f"storage={storage}: node {node['NodeManagerAddress']} does not see it; "
                "choose a directory or URI that all nodes share"
            )


@contextmanager
def _marker(storage: Location) -> Iterator[Location]:
    """Keep a small file in the storage for a while."""
    marker = storage / f".marker-{uuid.uuid4().hex}"
    try:
        storage.make_dir()
        marker.write_text("shared")
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise ValueError(f"storage={storage}: not writable ({reason}); choose another") from error
    try:
        yield marker
    finally:
        marker.filesystem.delete_file(marker.path)


@ray.remote(num_cpus=0)
def _sees(marker: Location) -> bool:
    return marker.exists()
