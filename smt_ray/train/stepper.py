"""Optimizer steps and validation of one rank, over all ranks of its engine.

A rank's share of a global batch is taken in micro-batches. Losses are sums over denominators that
all micro-batches and ranks share, so how a batch is cut changes nothing but rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from smt_ray.objectives.objective import Batch
from smt_ray.train.checkpoint import Checkpoint
from smt_ray.train.engine import Engine


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave."""

    metrics: dict[str, Tensor]
    """This rank's means over its micro-batches, scalars on the device."""
    carry: Tensor | None
    """The objective's state after the step, for all rows of the batch."""


class Stepper:
    """Steps and validations on whole batches of one rank."""

    def __init__(self, engine: Engine) -> None:
        """Step with `engine`."""
        self.engine, self.objective = engine, engine.objective

    def restore(self, saved: Checkpoint, batch: Batch) -> None:
        """Take over the optimizer's state; one step on `batch` at rate 0 allocates it."""
        self.step(batch, rate=0.0)
        saved.restore_optimizer(self.engine)

    def step(self, batch: Batch, rate: float) -> Step:
        """Take one optimizer step at learning rate `rate`; nothing waits for the device."""
        micros = self._split(batch)
        results, norms = self.engine.step(micros, rate)
        carries = [result.pop("carry") for result in results if "carry" in result]
        metrics: dict[str, Tensor] = {}
        for result in results:
            for name, value in result.items():
                key = "loss/total" if name == "loss" else name
                metrics[key] = metrics.get(key, 0.0) + value.detach() / len(micros)
        return Step(metrics | norms, torch.cat(carries) if carries else None)

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
        self.objective.eval()
        micros = self._split(batch)
        metrics: dict[str, Tensor] = {}
        for micro in micros:
            with self.engine.autocast():
                found = figures(micro)
            for name, value in found.items():
                if name != "carry":
                    metrics[name] = metrics.get(name, 0.0) + value / len(micros)
        self.objective.train()
        return metrics

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the means over the ranks; all of them call it.

        Two numbers are numerator and denominator of a ratio, whose means are taken apart; a ratio
        without any case has the denominator 0, and is left out.
        """
        numbers = torch.cat([value.double().flatten() for value in values.values()])
        self.engine.sum(numbers)
        left = iter((numbers / self.engine.world).tolist())
        means = {}
        for name, value in values.items():
            top, below = next(left), next(left) if value.dim() else 1.0
            if below != 0:
                means[name] = top / below
        return means

    def _split(self, batch: Batch) -> list[Batch]:
        """Cut a rank's batch into micro-batches of whole groups, and move them to the device.

        Scalars go to each. `counts` are taken before the move, so that no device is asked.
        """
        pieces, group = self.engine.pieces, self.engine.group
        groups = len(batch["inputs"]) // group
        cuts = [n * groups // pieces * group for n in range(1, pieces)]
        split = {
            name: value.tensor_split(cuts) if value.dim() else [value] * pieces
            for name, value in batch.items()
        }
        micros = [{name: value[n] for name, value in split.items()} for n in range(pieces)]
        counts = torch.stack([self.objective.counts(micro) for micro in micros]).mean(0)
        counts = self._there(counts)
        self.engine.sum(counts)
        counts /= self.engine.world
        return [
            {name: self._there(value) for name, value in micro.items()} | {"counts": counts}
            for micro in micros
        ]

    def _there(self, value: Tensor) -> Tensor:
        """Return a value on the device; a scalar stays, as kernels take it from here."""
        return value.to(self.engine.device, non_blocking=True) if value.dim() else value

    def wait(self) -> None:
        """Wait for all ranks."""
        self.mean({"": torch.zeros((), device=self.engine.device)})
