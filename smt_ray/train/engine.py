"""Engines: an objective with its optimizer, and the ranks that share it.

`DeepSpeedEngine` trains over the ranks of a process group at any ZeRO stage. `PlainEngine` trains
in one process with torch alone, to the same numbers as ZeRO stage 0 on one rank.
"""

import contextlib
from abc import ABC, abstractmethod
from datetime import timedelta
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from smt_ray.cluster.zero import zero_settings
from smt_ray.config import RuntimeConfig, TrainConfig
from smt_ray.objectives.objective import Batch, Objective

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names for the two moments of a parameter."""


class Engine(ABC):
    """Takes optimizer steps on an objective, by AdamW at a rate that each step is given."""

    objective: Objective
    train: TrainConfig
    device: torch.device
    rank: int = 0
    world: int = 1
    pieces: int = 1
    """Micro-batches in one optimizer step of one rank."""
    group: int = 1
    """Consecutive sequences that stay in one micro-batch."""

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which matrix products have the precision of the settings."""
        if self.train.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @abstractmethod
    def step(
        self, micros: list[Batch], rate: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Take one optimizer step at learning rate `rate`.

        Returns:
            What the objective returned for each micro-batch, and the norms of the gradient before
            it was clipped.
        """

    @abstractmethod
    def sum(self, values: Tensor) -> None:
        """Add `values` up over the ranks, in place; all of them call it."""

    @abstractmethod
    def greatest(self, values: list[int]) -> list[int]:
        """Return the greatest of each value over the ranks, which wait for each other."""

    @abstractmethod
    def state(self, parameter: nn.Parameter, *, stepped: bool) -> list[Tensor]:
        """Return a parameter's whole fp32 weight and its moments; all ranks call it.

        Args:
            parameter: one of the objective's.
            stepped: whether a step was taken; the moments are zeros before the first.
        """

    @abstractmethod
    def restore(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Set a parameter's moments, by name; a step must have allocated them."""

    @abstractmethod
    def count_steps(self, steps: int) -> None:
        """Set the number of steps that AdamW has taken."""


class PlainEngine(Engine):
    """One process, torch alone."""

    def __init__(
        self,
        objective: Objective,
        train: TrainConfig,
        *,
        rows: int = 0,
        device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
    ) -> None:
        """Move `objective` to `device`; `rows` sequences make a micro-batch, 0: the whole batch."""
        self.objective, self.device, self.train = objective.to(device), device, train
        self.pieces = train.global_batch // (rows or train.global_batch)
        self.optimizer = adamw(objective, train)

    def step(
        self, micros: list[Batch], rate: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Take one optimizer step at learning rate `rate`."""
        _set_rate(self.optimizer, rate)
        results = []
        for micro in micros:
            with self.autocast():
                result = self.objective(micro)
            (result["loss"] / len(micros)).backward()
            results.append(result)
        norms = clip(self.objective, self.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return results, norms

    def sum(self, values: Tensor) -> None:
        """Leave `values` as they are: there is one rank."""

    def greatest(self, values: list[int]) -> list[int]:
        """Return `values`."""
        return values

    def state(self, parameter: nn.Parameter, *, stepped: bool) -> list[Tensor]:
        """Return a parameter's weight and its moments."""
        return _plain_state(self.optimizer, parameter)

    def restore(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Set a parameter's moments."""
        _restore_plain(self.optimizer, parameter, moments)

    def count_steps(self, steps: int) -> None:
        """Set the number of steps that AdamW has taken."""
        _set_steps(self.optimizer, steps)


class DeepSpeedEngine(Engine):
    """All ranks of the process group, at the ZeRO stage of the runtime settings."""

    def __init__(
        self,
        objective: Objective,
        train: TrainConfig,
        runtime: RuntimeConfig,
        device: torch.device,
        *,
        group: int = 1,
    ) -> None:
        """Wrap `objective`; gradients are clipped by their joint norm over all parameters.

        Args:
            objective: what is trained.
            train: how.
            runtime: ZeRO stage, and the sequences of a micro-batch at most.
            device: this rank's.
            group: sequences that `objective` compares with each other: a micro-batch is a multiple.
        """
        import deepspeed

        self.objective, self.train, self.device, self.group = objective, train, device, group
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        assert train.global_batch // group >= self.world
        self.pieces = runtime.pieces(train.global_batch, self.world, group)
        rows = ceil(train.global_batch / self.world / self.pieces)
        self.plain = runtime.zero_stage == 0
        settings = zero_settings(rows, runtime.zero_stage, train.precision) | {
            "gradient_accumulation_steps": self.pieces,
            "gradient_clipping": 0.0 if self.plain else train.clip_norm,
        }
        optimizer = adamw(objective, train)
        self.engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=settings
        )
        if self.plain and self.world == 1:
            self.engine.enable_backward_allreduce = False  # it would only copy gradients
        # What hosts agree on must not wait for devices.
        self.hosts = dist.new_group(backend="gloo") if device.type == "cuda" else None
        # Groups that DeepSpeed makes have torch's own limit of half an hour.
        for made in dist.distributed_c10d._world.pg_map:
            _set_pg_timeout(timedelta(seconds=runtime.timeout_s), made)

    def step(
        self, micros: list[Batch], rate: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Take one optimizer step at learning rate `rate`."""
        engine: Any = self.engine
        _set_rate(engine.optimizer, rate)
        results, norms = [], {}
        for micro in micros:
            result = engine(micro)
            engine.backward(result["loss"])
            if self.plain and engine.is_gradient_accumulation_boundary():
                norms = clip(self.objective, self.train.clip_norm)  # DeepSpeed tells no norm
            engine.step()
            results.append(result)
        if not self.plain:
            norm = engine.get_global_grad_norm()
            norms = {"norm/gradient": torch.as_tensor(norm, device=self.device)}
        return results, norms

    def sum(self, values: Tensor) -> None:
        """Add `values` up over the ranks, in place."""
        dist.all_reduce(values)

    def greatest(self, values: list[int]) -> list[int]:
        """Return the greatest of each value over the ranks, which wait for each other."""
        if self.world == 1:
            return values
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.hosts)
        return [int(value) for value in found]

    def state(self, parameter: nn.Parameter, *, stepped: bool) -> list[Tensor]:
        """Return a parameter's whole fp32 weight and its moments."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.plain:
            return _plain_state(self.engine.optimizer, parameter)
        weight = safe_get_full_fp32_param(parameter)
        if not stepped:
            return [weight, *(torch.zeros_like(weight) for _ in MOMENTS)]
        return [weight, *(safe_get_full_optimizer_state(parameter, name) for name in MOMENTS)]

    def restore(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Set a parameter's moments."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if self.plain:
            _restore_plain(self.engine.optimizer, parameter, moments)
            return
        for name, value in moments.items():
            safe_set_full_optimizer_state(parameter, value, name)

    def count_steps(self, steps: int) -> None:
        """Set the number of steps that AdamW has taken."""
        _set_steps(self.engine.optimizer, steps)

    def destroy(self) -> None:
        """Free what DeepSpeed holds; only a process that builds another engine needs it."""
        self.engine.destroy()


def adamw(objective: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone."""
    matrices = [p for p in objective.parameters() if p.dim() > 1]
    vectors = [p for p in objective.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        fused=True,
    )


def clip(objective: nn.Module, limit: float) -> dict[str, Tensor]:
    """Scale the gradient down to a norm of `limit`; return its norm before.

    Where the cell and the rest are both trained, there are the norms of both as well. Both are
    scaled by the joint norm.
    """
    parts: dict[str, list[Tensor]] = {}
    graded = []
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            part = "norm/cell" if "cell" in name.split(".") else "norm/rest"
            parts.setdefault(part, []).append(parameter.grad)
            graded.append(parameter)
    norms = {part: get_total_norm(gradients) for part, gradients in parts.items()}
    whole = get_total_norm(list(norms.values()))
    clip_grads_with_norm_(graded, limit, whole)
    return (norms if len(norms) > 1 else {}) | {"norm/gradient": whole}


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _set_steps(optimizer: Any, steps: int) -> None:
    for state in optimizer.state.values():
        state["step"].fill_(steps)


def _plain_state(optimizer: Any, parameter: nn.Parameter) -> list[Tensor]:
    moments = optimizer.state.get(parameter, {})
    return [parameter.data, *(moments.get(m, torch.zeros_like(parameter)) for m in MOMENTS)]


def _restore_plain(optimizer: Any, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
    """Set a parameter's moments; one that no loss reaches has none."""
    for name, moment in optimizer.state.get(parameter, {}).items():
        if name in moments:
            moment.copy_(moments[name])
