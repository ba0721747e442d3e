"""Claims: of all who could make a thing on one cluster, one does, and the others wait for it.

A claim is a named actor that its holder owns. Ray gives a name to one actor at a time, and an actor
dies with the process that owns it, so that the claim of a holder that was killed is free again.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

logger = logging.getLogger(__name__)
NAMESPACE = "smt_ray"
"""Ray's namespace of the claims of all jobs on a cluster."""
POLL_S = 1.0


@ray.remote(num_cpus=0)
class Claim:
    """Holds its name, and nothing else."""


@contextmanager
def claimed(name: str) -> Iterator[None]:
    """Hold the claim `name`, after waiting for as long as another process on the cluster has it."""
    claim = _take(name)
    if claim is None:
        logger.info("%s: made by another run; waiting for it", name)
    while claim is None:
        time.sleep(POLL_S)
        claim = _take(name)
    try:
        yield
    finally:
        ray.kill(claim)


def _take(name: str) -> Any:
    """Return the claim's actor, or None if another process has it."""
    try:
        return Claim.options(  # type: ignore[attr-defined]
            name=name,
            namespace=NAMESPACE,
            max_restarts=-1,  # the claim outlives its actor's process, not its owner
            scheduling_strategy="DEFAULT",  # outside the caller's placement group, if it has one
        ).remote()
    except ValueError:  # the name is taken
        return None
