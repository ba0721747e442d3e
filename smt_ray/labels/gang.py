"""The encoder gang: one DeepSpeed ZeRO-3 engine across N Ray actors turns tokens into memories.

Legend: N rows, L sequence, K memory tokens, D width.
"""

import os
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from smt_ray.cluster.rendezvous import meeting_point
from smt_ray.cluster.zero import prepare_process, zero_settings
from smt_ray.config import ModelConfig, Precision, RuntimeConfig
from smt_ray.data.order import share
from smt_ray.data.rows import Columns
from smt_ray.data.shards import to_memory
from smt_ray.data.storage import Location
from smt_ray.data.weights import load_weights
from smt_ray.model.encoder import Encoder, build_encoder

AT_ONCE = 2
"""Batches that a rank has in hand: while one is encoded, the memories of the other leave."""
ANSWER_S = 10.0
"""Seconds after which a rank that says nothing counts as hung."""


@dataclass(frozen=True)
class EncoderSpec:
    """Everything a rank needs to build a `teacher` artifact's encoder and store its memories."""

    model: ModelConfig
    vocabulary: int
    teacher: Location
    precision: Precision
    dtype: str

    def build(self) -> Encoder:
        """Return the encoder with the teacher's weights, on the CPU."""
        encoder = build_encoder(self.model, self.vocabulary)
        encoder.load_state_dict(load_weights(self.teacher, "encoder."))
        return encoder


class Rank:
    """One process of a gang; its engine holds a share of the encoder's parameters."""

    def __init__(self) -> None:
        """Begin with the first batch."""
        self.turn, self.changed = 0, threading.Condition()

    def address(self) -> tuple[str, int]:
        """Return the address and the port at which the others find this one, if it is rank 0."""
        return meeting_point()

    def where(self) -> str:
        """Return the node and the process of this rank; it answers while it encodes, too."""
        return f"node {ray.util.get_node_ip_address()} (process {os.getpid()})"

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
        self.device, self.dtype = prepare_process(runtime), spec.dtype
        ranks = runtime.rank_count
        self.engine = encoding_engine(spec.build(), runtime.gang_batch, spec.precision, ranks)

    def encode(self, turn: int, tokens: NDArray[np.integer[Any]]) -> Columns:
        """Return the memories of all timesteps of `tokens` (N, L) as stored columns.

        All ranks encode the batches in the order of their turns: each forward is collective.
        """
        inputs = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        with self.changed:
            self.changed.wait_for(lambda: self.turn == turn)
            try:
                with torch.inference_mode():
                    memory = self.engine(inputs)
            finally:
                self.turn += 1
                self.changed.notify_all()
        with torch.inference_mode():
            return to_memory(memory, self.dtype)


def encoding_engine(encoder: nn.Module, batch: int, precision: Precision, ranks: int) -> Any:
    """Wrap `encoder` in an engine without an optimizer, its parameters sharded over the ranks.

    A single rank has nothing to share: ZeRO-3 would only copy each parameter before its use.
    """
    import deepspeed

    settings = zero_settings(batch, 3 if ranks > 1 else 0, precision)
    engine, *_ = deepspeed.initialize(model=encoder, config=settings)
    engine.eval()
    return engine


def release(name: str) -> None:
    """Free the resources of the gang of that name, and with them whatever still runs on them."""
    with suppress(ValueError):  # there is none of this name
        remove_placement_group(get_placement_group(name))


class Gang:
    """N ranks in one placement group. No wait is longer than `runtime.timeout_s`."""

    def __init__(self, spec: EncoderSpec, runtime: RuntimeConfig, name: str) -> None:
        """Start nothing yet.

        Args:
            spec: the encoder, and the number format of its labels.
            runtime: ranks, threads, devices.
            name: name of its placement group, unique in the cluster.
        """
        self.spec, self.runtime, self.name = spec, runtime, name
        self.ranks: list[Any] = []
        self.places: list[str] = []
        """Node and process of each rank."""
        self.build = ""
        """Tells the ranks from those of an earlier start."""

    def start(self) -> None:
        """Start the ranks.

        Raises:
            TimeoutError: if there is no room for them, or they do not answer.
        """
        self.close()  # an actor that Ray has restarted still has the group of its former gang
        count, limit = self.runtime.rank_count, self.runtime.timeout_s
        resources = self.runtime.resources
        group = placement_group([resources] * count, name=self.name)
        if not group.wait(limit):
            raise TimeoutError(f"no room for {count} x {resources}")
        actor = ray.remote(concurrency_groups={"answers": 1})(Rank).options(  # type: ignore[call-overload]
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_concurrency=AT_ONCE,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        self.ranks = [actor.remote() for _ in range(count)]
        self.places = ray.get(self._asked(), timeout=limit)
        address = ray.get(self.ranks[0].address.remote(), timeout=limit)
        started = [
            rank.start.remote(self.spec, self.runtime, number, address)
            for number, rank in enumerate(self.ranks)
        ]
        ray.get(started, timeout=limit)
        self.build, self.turn = uuid.uuid4().hex, 0

    def encode(self, tokens: NDArray[np.integer[Any]]) -> list[Any]:
        """Return where the columns of the memories of `tokens` (N, L) will be, in parts.

        Every rank takes part in every forward: one without rows encodes a zero in vain.
        """
        count, found = len(self.ranks), []
        for number, rank in enumerate(self.ranks):
            part = tokens[share(len(tokens), number, count)]
            made = rank.encode.remote(self.turn, part if len(part) else np.zeros_like(tokens[:1]))
            found += [made] if len(part) else []
        self.turn += 1
        return found

    def failing(self) -> str:
        """Return which ranks are gone or do not answer, and on which nodes."""
        asked = self._asked()
        answered, silent = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
        gone = [answer for answer in answered if _lost(answer)]
        found = [
            f"rank {number} on {place} {'is gone' if answer in gone else 'does not answer'}"
            for number, (answer, place) in enumerate(zip(asked, self.places, strict=True))
            if answer in gone or answer in silent
        ]
        return "; ".join(found) or f"a batch took over {self.runtime.timeout_s:.0f} s"

    def _asked(self) -> list[Any]:
        return [rank.where.options(concurrency_group="answers").remote() for rank in self.ranks]

    def close(self) -> None:
        """Kill all ranks and free their resources."""
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks, self.build = [], ""
        release(self.name)


def _lost(answer: Any) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return True
    return False
