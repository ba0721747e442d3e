"""This machine's part in a Ray session: a Ray of the run's own, or a cluster joined."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants

from smt_ray.cluster.address import HERE
from smt_ray.cluster.launcher import forget_ranks

LOOPBACK = "127.0.0.1"
SETTINGS: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
LONGEST = 38
"""Bytes of a path to which Ray's sockets, at most 69 longer, can be bound."""


def join(address: str) -> None:
    """Join the cluster at `address`, which has answered.

    Raises:
        ValueError: in one line, if Ray does not.
    """
    here = address.startswith((f"{LOOPBACK}:", "localhost:"))
    try:
        # Ray would look for such an address on another interface.
        with _loopback() if here else nullcontext():
            ray.init(**SETTINGS)
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"RAY_ADDRESS={address}: cannot be joined ({reason}); {HERE}") from error


def start(cpus: int, runs: int) -> None:
    """Start a Ray here that listens on the loopback interface alone.

    Args:
        cpus: logical CPUs that it offers.
        runs: runs that it serves at once.

    Raises:
        ValueError: if its files or sockets find no place, or it does not start in time.
    """
    # Processes that Ray starts at once, the cores by default; it warns of four times as many.
    at_once = cpus + 4 * runs
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(at_once))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # no cluster tells of it
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", _interface())
    forget_ranks(os.environ)
    location = get_default_ray_temp_dir()
    if (
        "RAY_TMPDIR" not in os.environ and len(location) > LONGEST
    ):  # TMPDIR, which nobody chose for it
        location = "/tmp/ray"
    try:
        with _loopback():
            ray.init(
                "local", num_cpus=cpus, include_dashboard=False, _temp_dir=location, **SETTINGS
            )
    except OSError as error:
        if error.strerror:
            reason = f"{error.strerror}: {error.filename or location}"
        else:  # of a socket: the whole path follows
            reason = str(error).partition(": /")[0]
        raise ValueError(
            f"RAY_TMPDIR={location.removesuffix('/ray')}: Ray cannot start there ({reason}); give "
            "RAY_TMPDIR a short directory that can be written"
        ) from None
    except Exception as error:
        if type(error) is not Exception:  # Ray's for a start that took over 30 s
            raise
        raise ValueError(
            f"Ray did not start in time ({' '.join(str(error).split())}); this machine is too "
            "busy; when it is less so, the same command goes on"
        ) from error


def _interface() -> str:
    """Return the name of the loopback interface."""
    names = psutil.net_if_addrs().items()
    return next(name for name, found in names if any(at.address == LOOPBACK for at in found))


@contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for this machine's address; its servers then listen there alone.

    Ray does so by itself where it has no clusters (macOS). Elsewhere
    `ray.init(_node_ip_address="127.0.0.1")` takes the address of an interface in its place.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
