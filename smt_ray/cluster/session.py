"""The Ray session of a run, and what must hold before any work starts on it."""

import errno
import logging
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from smt_ray.cluster.address import cluster_address
from smt_ray.cluster.cpus import usable_cpus
from smt_ray.cluster.interruption import shielded
from smt_ray.cluster.local import join, start
from smt_ray.cluster.refusals import refusal
from smt_ray.cluster.resources import (
    DATA_CPUS,
    KINDS,
    check_room,
    cpus_needed,
    fewest,
    gpus_needed,
    here,
    limits,
    processes,
    resolved,
    there,
)
from smt_ray.cluster.weights_and_biases import check_wandb
from smt_ray.config import RunConfig
from smt_ray.data.storage import Location

logger = logging.getLogger(__name__)
PATIENCE_S = 60
"""Seconds between lines while nodes start."""
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # Keep freed memory: glibc would give each large tensor back and fault it in again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def connect(config: RunConfig, runs: int = 1) -> RunConfig:
    """Join the cluster that this machine belongs to, or start one here for `runs` runs at once.

    Logical CPUs of a cluster started here may exceed the cores: its workers set their own threads.

    Returns:
        The run, with numbers for the cluster in place of `auto`.

    Raises:
        ValueError: in one line, if the cluster cannot be joined or none can be started.
    """
    if ray.is_initialized():
        return resolved(config, there())
    _quiet_ray()
    address = cluster_address()
    with shielded():
        if address:
            join(address)
            return resolved(config, there())
        own = resolved(config, here())
        start(max(usable_cpus(), runs * cpus_needed(own)), runs)
        return own


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Return where an actor dies with this process alone: on its node, which may have no CPU."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _quiet_ray() -> None:
    """Keep Ray's libraries off the terminal: their errors are raised, and its session has all."""
    import ray.data  # sets its logger up
    from ray._private.ray_logging import stdout_deduplicator

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # its errors are raised as well
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
    check_wandb(config.runtime.wandb_project)
    check_room(config, there())
    if limits():
        _wait_for_nodes(config)
    check_shared(Location.of(config.storage))


def _wait_for_nodes(config: RunConfig) -> None:
    """Let the autoscaler start the nodes, by the demand of a group that ends with this process."""
    config = fewest(config)
    asked = [config.runtime.resources] * processes(config)
    group = placement_group([*asked, *[{"CPU": 1.0}] * DATA_CPUS])
    waited = 0
    while not group.wait(PATIENCE_S):
        waited += PATIENCE_S
        logger.info(
            "waiting for nodes for %d s: need %d CPUs and %d GPUs, the cluster has %d and %d",
            *(waited, cpus_needed(config), gpus_needed(config)),
            *(int(ray.cluster_resources().get(kind, 0)) for kind in KINDS),
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
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ValueError(refusal(error, storage)) from error
        reason = error.strerror or " ".join(str(error).split())
        raise ValueError(f"storage={storage}: not writable ({reason}); choose another") from error
    try:
        yield marker
    finally:
        marker.delete()


@ray.remote(num_cpus=0)
def _sees(marker: Location) -> bool:
    return marker.exists()
