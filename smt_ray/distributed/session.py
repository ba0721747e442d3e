"""The Ray session of a run, and what must hold before any work starts on it."""

import logging
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from smt_ray.config import RunConfig, RuntimeConfig, masked
from smt_ray.data.storage import Location
from smt_ray.distributed.address import cluster_address
from smt_ray.distributed.interruption import end_ray_at_exit, shielded
from smt_ray.distributed.local import join, start, usable_cpus
from smt_ray.distributed.weights_and_biases import check_wandb

logger = logging.getLogger(__name__)
PATIENCE_S = 60
"""Seconds between lines while nodes start."""
DATA_CPUS = 2
"""CPUs that Ray Data's read and write tasks need beside the actors."""
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # Keep freed memory: glibc would give each large tensor back and fault it in again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def configure_logging() -> None:
    """Send the project's log lines to stderr as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Masking("%(message)s"))
    root = logging.getLogger("smt_ray")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)


class _Masking(logging.Formatter):
    """Masks the credentials of URIs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines where there is a traceback."""
        return masked(super().format(record))


def cpus_needed(runtime: RuntimeConfig) -> int:
    """Return the CPUs of the hungriest stage: the trainer's or the gangs', and Ray Data's."""
    return max(runtime.workers, runtime.gangs * runtime.gang_ranks) + DATA_CPUS


def gpus_needed(runtime: RuntimeConfig) -> int:
    """Return the GPUs of the hungriest stage."""
    return max(runtime.workers, runtime.gangs * runtime.gang_ranks) if runtime.gpu else 0


def connect(runtime: RuntimeConfig, runs: int = 1) -> None:
    """Join the cluster that this machine belongs to, or start one here for `runs` runs at once.

    Logical CPUs of a cluster started here may exceed the cores: its workers set their own threads.

    Raises:
        ValueError: in one line, if the cluster cannot be joined or none can be started.
    """
    if ray.is_initialized():
        return
    _quiet_ray()
    address = cluster_address()
    with shielded():
        if address:
            join(address)
        else:
            start(max(usable_cpus(), runs * cpus_needed(runtime)), runs)
            end_ray_at_exit()


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Return where an actor dies with this process alone: on its node, which may have no CPU."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _quiet_ray() -> None:
    """Keep all but errors of Ray's libraries off the terminal; its session's files have all."""
    import ray.data  # sets its logger up
    from ray._private.ray_logging import stdout_deduplicator

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    # A cluster says so again and again where more run than it has cores; RAY_DEDUP_LOGS_SKIP_REGEX
    # would have to be set before Ray is imported.
    stdout_deduplicator.skip_re = re.compile("worker processes have been started")
    ray.data.DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", module=r"ray\.data")


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
    """Check before any work: CPUs, GPUs, that all nodes share the storage, and who is logged to.

    A cluster that can grow is waited for.

    Raises:
        ValueError: in one line that names the field, the value and the mend.
    """
    runtime = config.runtime
    check_wandb(runtime.wandb_project)
    fields = (
        f"runtime.workers={runtime.workers}, runtime.gangs={runtime.gangs}, "
        f"runtime.gang-ranks={runtime.gang_ranks}"
    )
    mends = {
        "CPU": (cpus_needed(runtime), fields, "start Ray with --num-cpus {need}"),
        "GPU": (gpus_needed(runtime), f"runtime.gpu=True, {fields}", "give --runtime.no-gpu"),
    }
    limits = _limits()
    for kind, (need, values, mend) in mends.items():
        have = int(max(ray.cluster_resources().get(kind, 0), limits.get(kind, 0)))
        if have < need:
            raise ValueError(
                f"{values}: need {need} {kind}s, the cluster has {have}; lower them or "
                + mend.format(need=need)
            )
    if limits:
        _wait_for_nodes(runtime)
    check_shared(Location.of(config.storage))


def _limits() -> dict[str, int]:
    """Return what an autoscaler's configuration lets the cluster grow to; empty without one."""
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def _wait_for_nodes(runtime: RuntimeConfig) -> None:
    """Let the autoscaler start the nodes, by the demand of a group that ends with this process."""
    ranks = {"CPU": 1.0, "GPU": 1.0} if runtime.gpu else {"CPU": 1.0}
    count = max(runtime.workers, runtime.gangs * runtime.gang_ranks)
    group = placement_group([ranks] * count + [{"CPU": 1.0}] * DATA_CPUS)
    waited = 0
    while not group.wait(PATIENCE_S):
        waited += PATIENCE_S
        logger.info(
            "waiting for nodes for %d s: need %d CPUs and %d GPUs, the cluster has %d and %d",
            *(waited, cpus_needed(runtime), gpus_needed(runtime)),
            *(int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU")),
        )
    remove_placement_group(group)


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
