"""The training loop: one for every objective, on any host.

A `Program` says what is trained (an objective) on what (a stream). A `Host` says where: on Ray
Train with DeepSpeed, or in this process. This module says how: steps, schedule, validation,
checkpoints, logging, resumption.
"""

import itertools
import math
import sys
import time
from contextlib import closing
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from smt_ray.config import RunConfig, RuntimeConfig, TrainConfig
from smt_ray.data.reader import Stream
from smt_ray.data.rows import Batch
from smt_ray.objectives.objective import Objective
from smt_ray.train.agreement import Agreement
from smt_ray.train.checkpoint import State
from smt_ray.train.host import Host
from smt_ray.train.stepper import Stepper
from smt_ray.train.trace import Trace

NAMED_SEQUENCES = 8
"""Sequences of a bad batch that are named, at most."""
UNSCORED = sys.float_info.max
"""Validation loss of a checkpoint without one: the worst, and finite, as Ray keeps it in JSON."""


class StepSkipped(RuntimeError):
    """A step was not finite. From the last checkpoint on the training goes on without it."""


class Program(Protocol):
    """What one stage trains; it travels to the workers, so it holds locations and settings only."""

    @property
    def config(self) -> RunConfig:
        """The run that it belongs to."""

    @property
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def train(self) -> TrainConfig:
        """Optimisation of the stage."""

    @property
    def group(self) -> int:
        """Consecutive sequences of a batch that stay together."""

    def objective(self) -> Objective:
        """Build the objective with its initial weights."""

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Build a rank's training stream from `step` on, with the saved state of its columns."""

    def validation(self, rank: int, world: int) -> Stream:
        """Build a rank's validation stream."""


def learning_rate(train: TrainConfig, position: float) -> float:
    """Return the rate after `position` optimizer steps: linear warm-up, then the schedule."""
    warmup = max(1, round(train.warmup_fraction * train.steps))
    rate = train.learning_rate * min(1.0, (position + 1) / warmup)
    if train.schedule == "cosine" and position >= warmup:
        done = (position - warmup) / max(1, train.steps - warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate


def train(program: Program, host: Host, runtime: RuntimeConfig, *, traced_steps: int = 0) -> int:
    """Train `program` on `host` until its last step or a request to stop.

    Args:
        program: what is trained on what.
        host: where.
        runtime: how often it is logged and saved.
        traced_steps: steps at the end that are traced for the time of their collectives.

    Returns:
        The optimizer steps done.

    Raises:
        FloatingPointError: if a figure is not finite; it names the step.
        StepSkipped: if that step is to be left out: the next start goes on without it.
    """
    try:
        training = Training(program, host, runtime, traced_steps)
        with closing(training.stream):
            training.run()
    finally:
        host.close()
    return training.done


class Training:
    """One rank's side of a training run."""

    def __init__(
        self, program: Program, host: Host, runtime: RuntimeConfig, traced_steps: int
    ) -> None:
        """Build the objective, the engine and the streams; restore the latest checkpoint."""
        self.program, self.train, self.host = program, program.train, host
        self.runtime, self.traced_steps = runtime, traced_steps
        self.skipped = host.skipped()
        rank, world = host.rank, host.world
        objective = program.objective()
        with host.latest() as saved:
            self.resumed, self.done = saved is not None, saved.step if saved else 0
            self.saved = self.done
            if saved:
                objective.load_state_dict(saved.weights())
            engine = host.engine(objective, self.train)
            self.stepper, self.agreement = Stepper(engine), Agreement(engine, host.look_s)
            share = self.train.global_batch, rank, world, program.group
            kept = saved.stream(*share) if saved else None
            self.stream = program.stream(rank, world, kept, self.done)
            if saved:
                self.stepper.restore(saved, self._batch(self.stream, self._next()))
        self.held_out = program.validation(rank, world)
        self.loss = self.rate = self.learning_rate = 0.0
        self.trace: Trace | None = None

    def run(self) -> None:
        """Step, log, validate and save until done.

        Raises:
            FloatingPointError: if a figure is not finite; it names the step.
        """
        if not self.resumed:
            with self.host.aside():
                self._save(self._validate())
        self._begin()
        while not self._finished:
            stopping, wanted = self._step()
            validating = self.done % self.train.validate_every == 0 or self._finished
            saving = (
                validating or stopping or wanted or self.done % self.runtime.checkpoint_every == 0
            )
            if saving or self.done % self.runtime.log_every == 0:
                with self.host.aside():
                    self._log()
                    if saving:
                        self._save(self._validate() if validating else UNSCORED)
                self._begin()
            if stopping:
                return

    def _next(self) -> int:
        """Return the batch of the next step that is taken."""
        return next(step for step in itertools.count(self.done) if step + 1 not in self.skipped)

    @property
    def _position(self) -> float:
        return self.host.position(self.done)

    @property
    def _finished(self) -> bool:
        return self._position >= self.train.steps

    def _batch(self, stream: Stream, step: int) -> Batch:
        """Return a rank's share of global batch `step`, with the step and the progress in it."""
        progress = torch.tensor(self._position / self.train.steps)
        return {**stream.batch(step), "step": torch.tensor(step), "progress": progress}

    def _begin(self) -> None:
        """Begin the interval that the next row of metrics is about."""
        self.sums: dict[str, Tensor] = {}
        self.taken: list[tuple[int, Tensor]] = []  # number of each step, and its sequences
        self.since = time.monotonic()
        self.waited, self.tokens = 0.0, 0

    def _step(self) -> tuple[bool, bool]:
        """Take one step; return whether to stop and whether to save after it."""
        if self.done + 1 in self.skipped:
            return self._leave_out()
        if self.traced_steps and self.done == self.train.steps - self.traced_steps:
            self.trace = Trace(self.stepper.engine.device)
            self.trace.start()
        began = time.monotonic()
        batch = self._batch(self.stream, self.done)
        self.waited += time.monotonic() - began
        self.taken.append((self.done + 1, batch["sequence_id"].clone()))  # windows change in place
        self.learning_rate = learning_rate(self.train, self._position)
        agreed = self.agreement.look(
            stop=self.host.stop_requested(self.done, self.loss, self.rate),
            save=self.host.save_requested(),
        )
        step = self.stepper.step(batch, self.learning_rate)
        if step.carry is not None:
            self.stream.carry(self.done, step.carry)
        self.done += 1
        self.tokens += self.train.global_batch * batch["inputs"].shape[1]
        # Counts the steps up to the first bad one: NaN spreads to all later ones.
        finite = step.metrics["loss/total"].isfinite() & step.metrics["norm/gradient"].isfinite()
        for name, value in {**step.metrics, "finite": finite}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return agreed

    def _leave_out(self) -> tuple[bool, bool]:
        """Pass a step over; windows keep their states, and retire as if it had been taken."""
        batch = self.stream.batch(self.done)
        if "state" in batch:
            self.stream.carry(self.done, batch["state"])
        self.done += 1
        return False, False

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
        if bad := _not_finite(means):
            raise FloatingPointError(f"{self._bad(bad, self.done)}; {self._mend()}")
        named = {
            name if name.startswith("drift/") else f"validation/{name.removeprefix('loss/')}": v
            for name, v in means.items()
        }
        self.host.record(self.done, named | {"time/validation_s": time.monotonic() - began})
        return means["loss"]

    def _log(self) -> None:
        """Write the means of the steps since the interval began."""
        if not (steps := len(self.taken)):
            return
        means = {name: value / steps for name, value in self.stepper.mean(self.sums).items()}
        elapsed = time.monotonic() - self.since
        finite = math.floor(means.pop("finite") * steps + 1e-6)
        if bad := _not_finite(means):
            self._give_up(bad, *self.taken[min(finite, steps - 1)])
        means["time/step_s"] = elapsed / steps
        means["time/data_s"] = self.waited / steps  # rank 0's, of each step
        if self.trace and self.done == self.train.steps:
            means["time/collectives_s"] = self.trace.stop() / self.traced_steps
        means["rate/tokens_per_s"] = self.tokens / elapsed
        means["optimizer/learning_rate"] = self.learning_rate
        self.loss, self.rate = means["loss/total"], means["rate/tokens_per_s"]
        self.host.record(self.done, means)

    def _give_up(self, bad: str, step: int, sequences: Tensor) -> NoReturn:
        """End after a step that was not finite; it is left out from then on, if it may be."""
        what = self._bad(bad, step)
        if len(self.skipped) < self.train.skip_nonfinite:
            self.host.skip(step, what)
            self.stepper.wait()  # no rank ends before it is noted
            raise StepSkipped(f"{what}; going on without it from step {self.saved}")
        named = ", ".join(map(str, sequences[:NAMED_SEQUENCES].tolist()))
        more = ", ..." if len(sequences) > NAMED_SEQUENCES else ""
        allowed = f"optimizer.skip-nonfinite={self.train.skip_nonfinite}"
        raise FloatingPointError(
            f"{what}; {self._mend()}, or raise {allowed} to leave such steps out (rank "
            f"{self.host.rank} had the sequences {named}{more}; the last checkpoint is of step "
            f"{self.saved})"
        )

    def _bad(self, bad: str, step: int) -> str:
        return f"{self.program.stage}: {bad} not finite at step {step}"

    def _mend(self) -> str:
        return f"lower its learning-rate={self.train.learning_rate:g}"

    def _save(self, loss: float) -> None:
        """Save a portable checkpoint; every rank writes its part."""
        began = time.monotonic()
        self.host.save(self.stepper.engine, self.done, self.stream.state(), loss)
        self.saved = self.done
        self.host.record(self.done, {"time/checkpoint_s": time.monotonic() - began})


def _not_finite(means: dict[str, float]) -> str:
    """Return the names of the figures that are not finite; "" if all are."""
    return ", ".join(name for name, value in means.items() if not math.isfinite(value))
