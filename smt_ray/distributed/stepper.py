"""Optimizer steps and validation of one rank, over all ranks of the process group. No Ray.

A rank's share of a global batch is taken in micro-batches. Losses are sums over denominators that
all micro-batches and ranks share, so how a batch is cut changes nothing but rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from smt_ray.config import RuntimeConfig, TrainConfig
from smt_ray.data.reader import Batch
from smt_ray.distributed.checkpoint import Checkpoint
from smt_ray.distributed.engine import training_engine
from smt_ray.objectives.objective import Objective


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave."""

    metrics: dict[str, Tensor]
    """This rank's means over its micro-batches, scalars on the device."""
    carry: Tensor | None
    """The objective's state after the step, for all rows of the batch."""
    stopping: bool
    """Whether any rank asked to stop."""


class Stepper:
    """An objective in a DeepSpeed engine."""

    def __init__(
        self,
        objective: Objective,
        train: TrainConfig,
        runtime: RuntimeConfig,
        device: torch.device,
        saved: Checkpoint | None = None,
    ) -> None:
        """Build the engine, around the weights of `saved` if there is one."""
        self.objective, self.device, self.world = objective, device, dist.get_world_size()
        if saved:
            objective.load_state_dict(saved.weights())
        self.engine = training_engine(objective, train, runtime, self.world)

    def restore(self, saved: Checkpoint, batch: Batch) -> None:
        """Take over the optimizer's state; one step on `batch` at rate 0 allocates it."""
        self.step(batch, rate=0.0)
        saved.restore_optimizer(self.engine)

    def step(self, batch: Batch, rate: float, *, stop: bool = False) -> Step:
        """Take one optimizer step at learning rate `rate`; with `stop`, tell all ranks to stop."""
        engine = self.engine
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        micros = self._split(batch)
        stopping = self._share_counts(micros, stop)
        metrics: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        carries = []
        for micro in micros:
            result = engine(micro)
            if "carry" in result:
                carries.append(result.pop("carry"))
            engine.backward(result["loss"])
            norms |= self._plain_norms()
            engine.step()
            for name, value in result.items():
                key = "loss/total" if name == "loss" else name
                metrics[key] = metrics.get(key, 0.0) + value.detach() / len(micros)
        if not norms:
            norm = engine.get_global_grad_norm()
            norms = {"norm/gradient": torch.as_tensor(norm, device=self.device)}
        return Step(metrics | norms, torch.cat(carries) if carries else None, stopping)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's validation metrics, means over its micro-batches."""
        return self._look(batch, self.objective.validate)

    def probe(self, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's figures about what its stream keeps, means over its micro-batches."""
        return self._look(batch, self.objective.probe)

    @torch.no_grad()
    def _look(
        self, batch: Batch, figures: Callable[[Batch], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        self.engine.eval()
        micros = self._split(batch)
        self._share_counts(micros, stop=False)
        metrics: dict[str, Tensor] = {}
        for micro in micros:
            for name, value in figures(micro).items():
                if name != "carry":
                    metrics[name] = metrics.get(name, 0.0) + value / len(micros)
        self.engine.train()
        return metrics

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the means over the ranks; all of them call it.

        Two numbers are numerator and denominator of a ratio, whose means are taken apart; a ratio
        without any case has the denominator 0, and is left out.
        """
        numbers = torch.cat([value.double().flatten() for value in values.values()])
        dist.all_reduce(numbers)
        left = iter((numbers / self.world).tolist())
        means = {}
        for name, value in values.items():
            top, below = next(left), next(left) if value.dim() else 1.0
            if below != 0:
                means[name] = top / below
        return means

    def _split(self, batch: Batch) -> list[Batch]:
        """Cut a rank's batch into micro-batches on the device; scalars go to each."""
        pieces = self.engine.gradient_accumulation_steps()
        split = {
            name: value.to(self.device, non_blocking=True).chunk(pieces)
            if value.dim()
            else [value] * pieces
            for name, value in batch.items()
        }
        return [{name: value[n] for name, value in split.items()} for n in range(pieces)]

    def _share_counts(self, micros: list[Batch], stop: bool) -> bool:
        """Set each micro-batch's `counts` to the global mean; return whether any rank must stop."""
        counts = torch.stack([self.objective.counts(micro) for micro in micros]).mean(0)
        shared = torch.cat((counts, counts.new_tensor([float(stop)]))).to(self.device)
        dist.all_reduce(shared)
        shared /= self.world
        for micro in micros:
            micro["counts"] = shared[:-1]
        return bool(shared[-1] > 0)

    def _plain_norms(self) -> dict[str, Tensor]:
        """Return the gradient's norms at ZeRO stage 0, where DeepSpeed clips but does not tell.

        Where more than the cell is trained, its norm and the rest's stand apart too: both are
        clipped by the joint one.
        """
        engine = self.engine
        if engine.zero_optimization_stage() or not engine.is_gradient_accumulation_boundary():
            return {}
        parts: dict[str, list[Tensor]] = {}
        for name, parameter in self.objective.named_parameters():
            if parameter.grad is not None:
                part = "norm/cell" if "cell" in name.split(".") else "norm/rest"
                parts.setdefault(part, []).append(parameter.grad)
        norms = {part: get_total_norm(gradients) for part, gradients in parts.items()}
        whole = {"norm/gradient": get_total_norm(list(norms.values()))}
        return norms | whole if len(norms) > 1 else whole
