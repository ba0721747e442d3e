"""The actors of the label factory: each owns a gang, and batches go to the one with least to do.

Legend: N rows, L sequence.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from smt_ray.config import RuntimeConfig
from smt_ray.data.shards import tensor_to_memory
from smt_ray.labels.gang import EncoderSpec, Gang, release
from smt_ray.labels.meter import metered


class Labeller:
    """The owner of one gang; Ray restarts it on another node when its own is lost.

    Its arguments are small and hold no handle: Ray would keep others as objects, and an actor whose
    object is lost cannot be restarted (ray-project/ray#53727). Ray Data's own actors are such.
    """

    def __init__(self, spec: EncoderSpec, runtime: RuntimeConfig, name: str, meter: str) -> None:
        """Start the gang.

        Args:
            spec: the encoder.
            runtime: ranks, threads, devices.
            name: the gang's.
            meter: name of the `Meter` actor.
        """
        clock = ray.get_actor(meter)
        clock.join.remote(name)
        self.gang: Gang = Gang(spec, runtime, name, lambda: clock.rebuilt.remote(name))

    def encode(self, inputs: NDArray[np.integer[Any]]) -> pa.Array:
        """Return the column `memory` of a batch of inputs (N, L)."""
        return tensor_to_memory(self.gang.encode(inputs))


class Factory:
    """The gangs, as a function of Ray Data's tasks."""

    def __init__(self, meter: Any, labellers: dict[str, Any], schema: pa.Schema) -> None:
        """Label rows of `schema` by actors, by the names of their gangs."""
        self.meter, self.labellers, self.schema = meter, labellers, schema

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the label rows of a batch of token rows."""
        tokens = batch["tokens"].combine_chunks()
        inputs = tokens.flatten().to_numpy().reshape(len(batch), -1)
        if "targets" not in batch.column_names:  # they are the next tokens: the last is no input
            inputs = inputs[:, :-1]
        gang = ray.get(self.meter.begin.remote())
        memory = ray.get(self.labellers[gang].encode.remote(inputs))
        self.meter.end.remote(gang, inputs.size)
        columns = [batch[name] for name in self.schema.names[:-1]] + [memory]
        return pa.Table.from_arrays(columns, schema=self.schema)


@contextmanager
def factory(
    run: str, spec: EncoderSpec, runtime: RuntimeConfig, schema: pa.Schema, labels: int
) -> Iterator[Factory]:
    """Start the gangs, with their progress on the terminal; free all that they hold at the end.

    Args:
        run: name of the run.
        spec: the encoder.
        runtime: gangs, their ranks and devices.
        schema: columns of label rows.
        labels: how many are to be made.
    """
    pipeline = uuid.uuid4().hex[:8]
    names = [f"gang-{pipeline}-{number}" for number in range(runtime.gangs)]
    clock = f"meter-{pipeline}"
    with metered(run, labels, names, clock) as meter:
        actor: Any = ray.remote(Labeller).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        labellers = {name: actor.remote(spec, runtime, name, clock) for name in names}
        try:
            yield Factory(meter, labellers, schema)
        finally:
            for name, labeller in labellers.items():
                ray.kill(labeller)
                release(name)  # Ray frees its placement group late
