"""The training loop: one for every objective, on Ray Train workers with DeepSpeed.

A `Program` says what is trained (an objective) on what (a stream); this module says how: steps,
accumulation, schedule, validation, checkpoints, logging, resumption.
"""

import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from smt_ray.config import RuntimeConfig, TrainConfig
from smt_ray.data.reader import Batch, Stream
from smt_ray.data.storage import Location
from smt_ray.distributed.checkpoint import Checkpoint, State, save_checkpoint
from smt_ray.distributed.engine import prepare_process, training_engine
from smt_ray.distributed.metrics import MetricsLog
from smt_ray.distributed.monitor import Progress, Reporter
from smt_ray.objectives.objective import Objective

logger = logging.getLogger(__name__)


class Program(Protocol):
    """What one stage trains; it travels to the workers, so it holds places and settings only."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def train(self) -> TrainConfig:
        """Optimisation of the stage."""

    def objective(self) -> Objective:
        """Build the objective with its initial weights."""

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Build a rank's training stream, from the ranks' saved states where there are any."""

    def validation(self, rank: int, world: int) -> Stream:
        """Build a rank's validation stream."""


@dataclass(frozen=True)
class Assignment:
    """Everything a worker needs: what to train, how, where metrics go, the driver's board."""

    program: Program
    runtime: RuntimeConfig
    output: Location
    board: Any


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the rate of optimizer step `step`, from 0: linear warm-up, then the schedule."""
    warmup = max(1, round(train.warmup_fraction * train.steps))
    rate = train.learning_rate * min(1.0, (step + 1) / warmup)
    if train.schedule == "cosine" and step >= warmup:
        done = (step - warmup) / max(1, train.steps - warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate


def train_worker(settings: dict[str, Assignment]) -> None:
    """Train on one Ray Train worker until the last step or a request to stop.

    Raises:
        FloatingPointError: if the loss is not finite; it names the step.
    """
    Training(settings["assignment"]).run()


class Training:
    """One worker's side of a training run."""

    def __init__(self, assignment: Assignment) -> None:
        """Build the objective, the engine and the streams; restore the latest checkpoint."""
        self.program, self.train = assignment.program, assignment.program.train
        self.checkpoint_every = assignment.runtime.checkpoint_every
        self.log_every = assignment.runtime.log_every
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = prepare_process(assignment.runtime)

        self.objective = self.program.objective()
        latest = ray.train.get_checkpoint()
        with tempfile.TemporaryDirectory() as empty:
            directory = latest.to_directory(empty) if latest else None
            saved = Checkpoint(Path(directory)) if directory else None
            self.step = saved.step if saved else 0
            if saved:
                self.objective.load_state_dict(saved.weights())
            self.engine = training_engine(
                self.objective, self.train, assignment.runtime, self.world
            )
            states = saved.streams() if saved else []
            self.stream = self.program.stream(self.rank, self.world, states)
            if saved and saved.step:
                self._optimize(self.stream.batch(self.step), rate=0.0)  # allocates the moments
                saved.restore_optimizer(self.engine)
        self.held_out = self.program.validation(self.rank, self.world)
        self.log = self.reporter = None
        if self.rank == 0:
            self.log = MetricsLog(assignment.output, self.program.stage, self.step)
            self.reporter = Reporter(assignment.board)
        self.loss = self.rate = 0.0

    def run(self) -> None:
        """Step, log, validate and save until done."""
        first, since = self.step, time.monotonic()
        sums: dict[str, Tensor] = {}
        if first == 0:
            self._save(self._validate())
        while self.step < self.train.steps:
            batch = self.stream.batch(self.step)
            batch["step"] = torch.tensor(self.step)
            metrics, carry, stopping = self._optimize(batch, learning_rate(self.train, self.step))
            if carry is not None:
                self.stream.carry(self.step, carry)
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
            self.step += 1
            last = self.step == self.train.steps or stopping
            if self.step % self.log_every == 0 or last:
                steps = (self.step - first) % self.log_every or self.log_every
                since = self._log(sums, steps, batch["inputs"].shape[1], since)
                sums = {}
            if self.step % self.train.validate_every == 0 or self.step == self.train.steps:
                self._save(self._validate())
            elif self.step % self.checkpoint_every == 0 or stopping:
                self._save(math.inf)
            if stopping:
                return

    def _optimize(self, batch: Batch, rate: float) -> tuple[dict[str, Tensor], Tensor | None, bool]:
        """Take one optimizer step on this rank's share of a global batch.

        Returns:
            The step's metrics (device scalars), the carry of all rows, and whether to stop.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        micros = self._split(batch)
        stopping = self._share_counts(micros)
        sums: dict[str, Tensor] = {}
        carries = []
        for micro in micros:
            result = self.engine(micro)
            if "carry" in result:
                carries.append(result.pop("carry"))
            self.engine.backward(result["loss"])
            self.engine.step()
            for name, value in result.items():
                key = "loss/total" if name == "loss" else name
                sums[key] = sums.get(key, 0.0) + value.detach() / len(micros)
        sums["norm/gradient"] = torch.as_tensor(float(self.engine.get_global_grad_norm() or 0.0))
        return sums, torch.cat(carries) if carries else None, stopping

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

    def _share_counts(self, micros: list[Batch]) -> bool:
        """Set each micro-batch's `counts` to the global mean; return whether any rank must stop."""
        counts = torch.stack([self.objective.counts(micro) for micro in micros]).mean(0)
        stop = counts.new_tensor([float(self._stop_requested())])
        shared = torch.cat((counts, stop))
        dist.all_reduce(shared)
        shared /= self.world
        for micro in micros:
            micro["counts"] = shared[:-1]
        return bool(shared[-1] > 0)

    def _stop_requested(self) -> bool:
        """Report progress and return the driver's wish; only rank 0 talks to the driver."""
        if self.reporter is None:
            return False
        place = (self.program.stage, self.step, self.train.steps)
        return self.reporter.stop_requested(Progress(*place, self.loss, self.rate))

    @torch.no_grad()
    def _validate(self) -> float:
        """Return the mean validation loss over all ranks, logged with its parts."""
        self.engine.eval()
        sums: dict[str, Tensor] = {}
        for step in range(self.train.validation_batches):
            batch = self.held_out.batch(step)
            batch["step"] = torch.tensor(step)
            micros = self._split(batch)
            self._share_counts(micros)
            for micro in micros:
                for name, value in self.objective.validate(micro).items():
                    if name != "carry":
                        weight = len(micros) * self.train.validation_batches
                        sums[name] = sums.get(name, 0.0) + value / weight
        self.engine.train()
        means = self._mean(sums)
        if self.log:
            named = {f"validation/{name.removeprefix('loss/')}": v for name, v in means.items()}
            self.log.add(self.step, named)
        return means["loss"]

    def _mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the means over the ranks."""
        stacked = torch.stack([value.double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def _log(self, sums: dict[str, Tensor], steps: int, length: int, since: float) -> float:
        """Write the means of the last `steps` steps; return the time."""
        means = {name: value / steps for name, value in self._mean(sums).items()}
        if not all(map(math.isfinite, means.values())):
            bad = ", ".join(name for name, value in means.items() if not math.isfinite(value))
            raise FloatingPointError(
                f"{self.program.stage}: {bad} not finite in steps {self.step - steps + 1}.."
                f"{self.step}; lower the learning rate"
            )
        now = time.monotonic()
        means["time/step_s"] = (now - since) / steps
        means["rate/tokens_per_s"] = self.train.global_batch * length * steps / (now - since)
        means["optimizer/learning_rate"] = learning_rate(self.train, self.step - 1)
        self.loss, self.rate = means["loss/total"], means["rate/tokens_per_s"]
        if self.log:
            self.log.add(self.step, means)
        return now

    def _save(self, loss: float) -> None:
        """Save a portable checkpoint through Ray Train; every rank writes its part."""
        with tempfile.TemporaryDirectory() as directory:
            save_checkpoint(self.engine, Path(directory), self.step, self.stream.state())
            if self.log:
                self.log.flush()
            ray.train.report(
                {"step": self.step, "validation/loss": loss},
                checkpoint=ray.train.Checkpoint.from_directory(directory),
                checkpoint_dir_name=f"step-{self.step:09d}",
            )
