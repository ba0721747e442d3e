"""The training loop: one for every objective, on Ray Train workers with DeepSpeed.

A `Program` says what is trained (an objective) on what (a stream); this module says how: steps,
accumulation, schedule, validation, checkpoints, logging, resumption.
"""

import logging
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
from torch import Tensor

from smt_ray.config import RunConfig, RuntimeConfig, TrainConfig
from smt_ray.data.reader import Batch, Stream
from smt_ray.data.storage import Location
from smt_ray.distributed.checkpoint import Checkpoint, State, save_checkpoint
from smt_ray.distributed.engine import prepare_process
from smt_ray.distributed.metrics import MetricsLog
from smt_ray.distributed.monitor import Reporter
from smt_ray.distributed.stepper import Stepper
from smt_ray.distributed.trace import Trace
from smt_ray.objectives.objective import Objective

logger = logging.getLogger(__name__)
UNSCORED = sys.float_info.max
"""Validation loss of a checkpoint without one: the worst, and finite, as Ray keeps it in JSON."""


class Program(Protocol):
    """What one stage trains; it travels to the workers, so it holds places and settings only."""

    @property
    def config(self) -> RunConfig:
        """The run that it belongs to."""

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
    traced_steps: int = 0
    """Steps at the end that are traced for the time of their collectives."""


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
        FloatingPointError: if a figure is not finite; it names the step.
    """
    training = Training(settings["assignment"])
    try:
        training.run()
    finally:
        if training.log:
            training.log.close()


class Training:
    """One worker's side of a training run."""

    def __init__(self, assignment: Assignment) -> None:
        """Build the objective, the engine and the streams; restore the latest checkpoint."""
        self.program, self.train = assignment.program, assignment.program.train
        self.runtime, self.traced_steps = assignment.runtime, assignment.traced_steps
        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
        device = prepare_process(self.runtime)
        objective = self.program.objective()
        latest = ray.train.get_checkpoint()
        with tempfile.TemporaryDirectory() as empty:
            saved = Checkpoint(Path(latest.to_directory(empty))) if latest else None
            self.resumed, self.done = saved is not None, saved.step if saved else 0
            self.stepper = Stepper(objective, self.train, self.runtime, device, saved)
            self.stream = self.program.stream(rank, world, saved.streams() if saved else [])
            if saved:
                self.stepper.restore(saved, self._batch(self.stream, self.done))
        self.held_out = self.program.validation(rank, world)
        self.log = self.reporter = None
        if rank == 0:
            program, output = self.program, assignment.output
            self.log = MetricsLog(program.config, output, program.stage, self.done)
            self.reporter = Reporter(assignment.board, program.stage, self.done, self.train.steps)
        self.loss = self.rate = 0.0
        self.trace: Trace | None = None

    def run(self) -> None:
        """Step, log, validate and save until done.

        Raises:
            FloatingPointError: if a figure is not finite; it names the step.
        """
        if not self.resumed:
            self._save(self._validate())
        self._begin()
        while self.done < self.train.steps:
            stopping = self._step()
            validating = self.done % self.train.validate_every == 0 or self.done == self.train.steps
            saving = validating or stopping or self.done % self.runtime.checkpoint_every == 0
            if saving or self.done % self.runtime.log_every == 0:
                self._log()
                if saving:
                    self._save(self._validate() if validating else UNSCORED)
                self._begin()
            if stopping:
                return

    def _batch(self, stream: Stream, step: int) -> Batch:
        """Return a rank's share of global batch `step`, with the step and the progress in it."""
        progress = torch.tensor(self.done / self.train.steps)
        return {**stream.batch(step), "step": torch.tensor(step), "progress": progress}

    def _begin(self) -> None:
        """Begin the interval that the next row of metrics is about."""
        self.sums: dict[str, Tensor] = {}
        self.first, self.since, self.waited = self.done, time.monotonic(), 0.0

    def _step(self) -> bool:
        """Take one step; return whether to stop after it."""
        if self.traced_steps and self.done == self.train.steps - self.traced_steps:
            self.trace = Trace(self.stepper.device)
            self.trace.start()
        began = time.monotonic()
        batch = self._batch(self.stream, self.done)
        self.waited += time.monotonic() - began
        rate = learning_rate(self.train, self.done)
        step = self.stepper.step(batch, rate, stop=self._stop_requested())
        if step.carry is not None:
            self.stream.carry(self.done, step.carry)
        self.done += 1
        self.tokens = self.train.global_batch * batch["inputs"].shape[1]
        # Counts the steps up to the first bad one: NaN spreads to all later ones.
        finite = step.metrics["loss/total"].isfinite()
        for name, value in {**step.metrics, "finite": finite}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return step.stopping

    def _stop_requested(self) -> bool:
        """Report progress and return the driver's wish; only rank 0 talks to the driver."""
        if self.reporter is None:
            return False
        return self.reporter.stop_requested(self.done, self.loss, self.rate)

    def _validate(self) -> float:
        """Return the mean validation loss over all ranks, logged with its parts and the probe's."""
        began = time.monotonic()
        sums: dict[str, Tensor] = {}
        count = self.train.validation_batches
        for step in range(count):
            for name, value in self.stepper.validate(self._batch(self.held_out, step)).items():
                sums[name] = sums.get(name, 0.0) + value / count
        kept = self.stream.probe()
        if kept is not None:
            sums |= self.stepper.probe({**kept, "step": torch.tensor(self.done)})
        means = self.stepper.mean(sums)
        self._require_finite(means, self.done)
        if self.log:
            named = {
                name if name.startswith("drift/") else f"validation/{name.removeprefix('loss/')}": v
                for name, v in means.items()
            }
            self.log.add(self.done, named | {"time/validation_s": time.monotonic() - began})
        return means["loss"]

    def _log(self) -> None:
        """Write the means of the steps since the interval began."""
        steps = self.done - self.first
        means = {name: value / steps for name, value in self.stepper.mean(self.sums).items()}
        elapsed = time.monotonic() - self.since
        finite = math.floor(means.pop("finite") * steps + 1e-6)
        self._require_finite(means, min(self.first + finite + 1, self.done))
        means["time/step_s"] = elapsed / steps
        means["time/data_s"] = self.waited / steps  # rank 0's, of each step
        if self.trace and self.done == self.train.steps:
            means["time/collectives_s"] = self.trace.stop() / self.traced_steps
        means["rate/tokens_per_s"] = self.tokens * steps / elapsed
        means["optimizer/learning_rate"] = learning_rate(self.train, self.done - 1)
        self.loss, self.rate = means["loss/total"], means["rate/tokens_per_s"]
        if self.log:
            self.log.add(self.done, means)

    def _require_finite(self, means: dict[str, float], step: int) -> None:
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{self.program.stage}: {', '.join(bad)} not finite at step {step}; "
                f"lower its learning-rate={self.train.learning_rate:g}"
            )

    def _save(self, loss: float) -> None:
        """Save a portable checkpoint through Ray Train; every rank writes its part."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            state = self.stream.state()
            save_checkpoint(self.stepper.engine, Path(directory), self.done, state, loss)
            if self.log:
                self.log.flush()
            ray.train.report(
                {"step": self.done, "validation/loss": loss},
                checkpoint=ray.train.Checkpoint.from_directory(directory),
                checkpoint_dir_name=f"step-{self.done:09d}",
            )
        if self.log:
            self.log.add(self.done, {"time/checkpoint_s": time.monotonic() - began})
