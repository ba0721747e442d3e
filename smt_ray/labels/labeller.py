"""The actors that own gangs, and what tasks ask them by: batches go to the one with least to do.

Legend: N rows, L sequence.
"""

import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from smt_ray.config import RuntimeConfig
from smt_ray.data.rows import Columns
from smt_ray.labels.gang import EncoderSpec, Gang, release
from smt_ray.labels.meter import metered

logger = logging.getLogger(__name__)


class Labeller:
    """The owner of one gang; Ray restarts it on another node when its own is lost.

    Its arguments are small and hold no handle: Ray would keep others as objects, and an actor whose
    object is lost cannot be restarted (ray-project/ray#53727). Ray Data's own actors are such.
    """

    def __init__(self, spec: EncoderSpec, runtime: RuntimeConfig, name: str, meter: str) -> None:
        """Take over the gang; its ranks start with the first batch.

        Args:
            spec: the encoder.
            runtime: ranks, threads, devices.
            name: the gang's.
            meter: name of the `Meter` actor.
        """
        self.gang, self.clock = Gang(spec, runtime, name), ray.get_actor(meter)
        self.clock.join.remote(name)
        # Ray cancels what a cancelled task has asked for. A batch that some ranks miss would stop
        # them all, so this thread asks them: for Ray it belongs to no task.
        self.thread: ThreadPoolExecutor = ThreadPoolExecutor(1)

    def encode(self, tokens: NDArray[np.integer[Any]]) -> tuple[str, list[Any]]:
        """Return the gang's build, and where the memories of `tokens` (N, L) will be."""
        return self.thread.submit(self._encode, tokens).result()

    def _encode(self, tokens: NDArray[np.integer[Any]]) -> tuple[str, list[Any]]:
        if not self.gang.build:
            self.gang.start()
        return self.gang.build, self.gang.encode(tokens)

    def failed(self, build: str) -> None:
        """Give up a build of the gang, after a lost rank or a wait without an answer."""
        if build == self.gang.build:
            why = self.gang.failing()
            self.gang.close()
            self.clock.rebuilt.remote(self.gang.name, why)


@dataclass(frozen=True)
class Gangs:
    """All gangs of a run, as any process of the cluster asks them."""

    meter: Any
    labellers: dict[str, Any]
    """The owners, by the names of their gangs."""
    runtime: RuntimeConfig

    def encode(self, tokens: NDArray[np.integer[Any]]) -> Columns:
        """Return the memories of all timesteps of `tokens` (N, L) as stored columns.

        A gang that fails is built again, and the batch tried again.

        Raises:
            ValueError: if that happens more than `runtime.max_failures` times.
        """
        failures = 0
        while True:
            gang, labels = ray.get(self.meter.begin.remote()), 0
            try:
                made = self._encode(gang, tokens)
                labels = tokens.size
                return made
            except RayError as error:
                failures += 1
                if failures > self.runtime.max_failures:
                    raise ValueError(
                        f"runtime.max-failures={self.runtime.max_failures}: a batch of "
                        f"{len(tokens)} sequences failed {failures} times in encoder gangs of "
                        f"{self.runtime.rank_count} ranks ({_line(error)})"
                    ) from error
                logger.warning("encoder gang: once more after %s", _line(error))
            finally:
                self.meter.end.remote(gang, labels)

    def _encode(self, gang: str, tokens: NDArray[np.integer[Any]]) -> Columns:
        owner, limit = self.labellers[gang], self.runtime.timeout_s
        build, found = ray.get(owner.encode.remote(tokens), timeout=4 * limit)  # it may start first
        try:
            parts = ray.get(found, timeout=limit)
        except RayError:
            owner.failed.remote(build)
            raise
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _line(error: RayError) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"


@contextmanager
def started(run: str, spec: EncoderSpec, runtime: RuntimeConfig, labels: int) -> Iterator[Gangs]:
    """Start the gangs, with their progress on the terminal; free all that they hold at the end.

    Args:
        run: name of the run.
        spec: the encoder.
        runtime: gangs, their ranks and devices.
        labels: how many are to be made; 0: as many as are asked for, without a word about them.
    """
    pipeline = uuid.uuid4().hex[:8]
    names = [f"gang-{pipeline}-{number}" for number in range(runtime.gangs)]
    clock = f"meter-{pipeline}"
    with metered(run, labels, names, clock) as meter:
        actor: Any = ray.remote(Labeller).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        labellers = {name: actor.remote(spec, runtime, name, clock) for name in names}
        try:
            yield Gangs(meter, labellers, runtime)
        finally:
            for name, labeller in labellers.items():
                ray.kill(labeller)
                release(name)  # Ray frees its placement group late
