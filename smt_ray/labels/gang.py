"""The encoder gang: one DeepSpeed ZeRO-3 engine across N Ray actors turns tokens into memories.

Legend: N rows, L sequence, K memory tokens, D width.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor, nn

from smt_ray.cluster.rendezvous import meeting_point
from smt_ray.cluster.zero import prepare_process, zero_settings
from smt_ray.config import ModelConfig, Precision, RuntimeConfig
from smt_ray.data.shards import DTYPES
from smt_ray.data.storage import Location
from smt_ray.data.weights import load_weights
from smt_ray.model.encoder import Encoder, build_encoder

logger = logging.getLogger(__name__)
CALL_TIMEOUT_S = 1800.0
"""Longest wait for one batch: a rank that hangs in a collective never answers."""


@dataclass(frozen=True)
class EncoderSpec:
    """Everything a rank needs to build a `teacher` artifact's encoder and store its memories."""

    model: ModelConfig
    vocabulary: int
    teacher: Location
    precision: Precision
    dtype: Precision

    def build(self) -> Encoder:
        """Return the encoder with the teacher's weights, on the CPU."""
        encoder = build_encoder(self.model, self.vocabulary)
        encoder.load_state_dict(load_weights(self.teacher, "encoder."))
        return encoder


class Rank:
    """One process of a gang; its engine holds a share of the encoder's parameters."""

    def address(self) -> tuple[str, int]:
        """Return the address and the port at which the others find this one, if it is rank 0."""
        return meeting_point()

    def start(
        self, spec: EncoderSpec, runtime: RuntimeConfig, rank: int, address: tuple[str, int]
    ) -> None:
        """Join the other ranks and build the engine; returns when all have."""
        host, port = address
        # Ray shows a rank its own GPU alone, so that is device 0 of each.
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(runtime.rank_count),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }
        self.device = prepare_process(runtime)
        self.dtype = DTYPES[spec.dtype]
        self.engine = encoding_engine(spec.build(), runtime.gang_batch, spec.precision)

    @torch.inference_mode()
    def encode(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return the memories of all timesteps as bytes (N, L, K, D * itemsize)."""
        inputs = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        memory = self.engine(inputs).to(self.dtype).cpu()
        return memory.view(torch.uint8).numpy()


def encoding_engine(encoder: nn.Module, batch: int, precision: Precision) -> Any:
    """Wrap `encoder` in a ZeRO-3 engine without an optimizer: parameters sharded over the ranks."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=encoder, config=zero_settings(batch, 3, precision))
    engine.eval()
    return engine


def release(name: str) -> None:
    """Free the resources of the gang of that name, and with them whatever still runs on them."""
    with suppress(ValueError):  # there is none of this name
        remove_placement_group(get_placement_group(name))


class Gang:
    """N ranks in one placement group; a dead or hung one costs a rebuild and the batch a retry."""

    def __init__(
        self,
        spec: EncoderSpec,
        runtime: RuntimeConfig,
        name: str,
        rebuilding: Callable[[], object] = lambda: None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        """Start the ranks, and let them encode once.

        Args:
            spec: the encoder, and the number format of its labels.
            runtime: ranks, threads, devices, and the failures that one batch may meet.
            name: name of its placement group, unique in the cluster.
            rebuilding: called each time that it is built again.
            timeout_s: longest wait for one batch.
        """
        self.spec, self.runtime, self.timeout_s = spec, runtime, timeout_s
        self.name, self.rebuilding = name, rebuilding
        self.ranks: list[Any] = []
        self.encode(np.zeros((runtime.rank_count, 2), np.int64))

    def encode(self, tokens: NDArray[np.integer[Any]]) -> Float[Tensor, "N L K D"]:
        """Return the memories of all timesteps of `tokens` (N, L), in the label's number format.

        Raises:
            RuntimeError: if the gang fails more than `runtime.max_failures` times on this batch.
        """
        failures = 0
        while True:
            try:
                if not self.ranks:
                    self._start()
                return self._encode(tokens)
            except RayError as error:
                self.close()
                failures += 1
                if failures > self.runtime.max_failures:
                    raise RuntimeError(
                        f"encoder gang of {self.runtime.rank_count} ranks: a batch of "
                        f"{len(tokens)} sequences failed {failures} times"
                    ) from error
                self.rebuilding()
                logger.warning("encoder gang: rebuilding after %s", type(error).__name__)

    def close(self) -> None:
        """Kill all ranks and free their resources."""
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks = []
        release(self.name)

    def _start(self) -> None:
        # An actor that Ray has restarted still has the group of its former gang.
        self.close()
        count = self.runtime.rank_count
        resources = self.runtime.resources
        group = placement_group([resources] * count, name=self.name)
        actor = ray.remote(Rank).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        self.ranks = [actor.remote() for _ in range(count)]
        address = ray.get(self.ranks[0].address.remote())
        ray.get(
            [
                rank.start.remote(self.spec, self.runtime, number, address)
                for number, rank in enumerate(self.ranks)
            ]
        )

    def _encode(self, tokens: NDArray[np.integer[Any]]) -> Float[Tensor, "N L K D"]:
        """Scatter equal slices, since every rank must take part in every forward, and gather."""
        share = -(-len(tokens) // len(self.ranks))
        padding = share * len(self.ranks) - len(tokens)
        slices = np.pad(tokens, ((0, padding), (0, 0))).reshape(len(self.ranks), share, -1)
        calls = [rank.encode.remote(s) for rank, s in zip(self.ranks, slices, strict=True)]
        memory = np.concatenate(ray.get(calls, timeout=self.timeout_s))[: len(tokens)]
        return torch.from_numpy(memory).view(DTYPES[self.spec.dtype])
