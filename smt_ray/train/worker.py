"""One Ray Train worker of a training: its host, with DeepSpeed under the loop."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train import CheckpointUploadMode
from ray.train.v2._internal.execution.context import get_train_context

from smt_ray.cluster.heartbeat import Heart, Unanswered
from smt_ray.cluster.monitor import Reporter
from smt_ray.cluster.zero import prepare_process
from smt_ray.config import RuntimeConfig, TrainConfig
from smt_ray.data.storage import Location
from smt_ray.objectives.objective import Objective
from smt_ray.train.checkpoint import Checkpoint, State, save_checkpoint
from smt_ray.train.engine import DeepSpeedEngine, Engine
from smt_ray.train.host import Host
from smt_ray.train.loop import Program, StepSkipped, train
from smt_ray.train.metrics import MetricsLog

SKIPPED = "skipped.json"
"""The steps of a stage that are left out, by number."""


@dataclass(frozen=True)
class Assignment:
    """Everything a worker needs: what to train, how, where metrics go, the driver's board."""

    program: Program
    runtime: RuntimeConfig
    output: Location
    board: Any
    traced_steps: int = 0
    """Steps at the end that are traced for the time of their collectives."""


def train_worker(settings: dict[str, Assignment]) -> None:
    """Train on one Ray Train worker until the last step or a request to stop.

    Raises:
        FloatingPointError: if a figure is not finite; it names the step.
        StepSkipped: if that step is left out from the next start on.
        Unanswered: if a collective was given up; it names the rank that did not take part.
    """
    assignment = settings["assignment"]
    host = RayTrainHost(assignment)
    try:
        train(assignment.program, host, assignment.runtime, traced_steps=assignment.traced_steps)
    except (RuntimeError, RayError) as error:
        if isinstance(error, StepSkipped) or not (missed := host.heart.missed()):
            raise
        assignment.board.explain.remote(missed)
        raise Unanswered(f"{assignment.program.stage}: {missed}") from error


class RayTrainHost(Host):
    """Checkpoints go through Ray Train; rank 0 writes the metrics and talks to the driver."""

    def __init__(self, assignment: Assignment) -> None:
        """Set the process up for DeepSpeed."""
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.assignment = assignment
        self.device = prepare_process(assignment.runtime)
        self.heart = Heart(assignment.board, self.rank, assignment.runtime.timeout_s)
        self.log: MetricsLog | None = None
        self.reporter: Reporter | None = None
        self.notice: Any = None

    def engine(self, objective: Objective, train: TrainConfig) -> Engine:
        """Return a DeepSpeed engine over all workers."""
        program, runtime = self.assignment.program, self.assignment.runtime
        return DeepSpeedEngine(objective, train, runtime, self.device, group=program.group)

    @contextmanager
    def latest(self) -> Iterator[Checkpoint | None]:
        """Open Ray Train's latest checkpoint; rank 0 goes on with its metrics."""
        latest = ray.train.get_checkpoint()
        with tempfile.TemporaryDirectory() as empty:
            saved = None
            if latest:
                saved = Checkpoint(Location(latest.filesystem, latest.path), Path(empty))
            if self.rank == 0:
                self._open_log(saved.step if saved else 0)
            yield saved

    def _open_log(self, done: int) -> None:
        program, output = self.assignment.program, self.assignment.output
        self.log = MetricsLog(program.config, output, program.stage, done)
        steps = program.train.steps
        self.reporter = Reporter(self.assignment.board, program.stage, done, steps, self.world)

    def save(self, engine: Engine, step: int, stream: State, loss: float) -> None:
        """Save a portable checkpoint here; Ray Train uploads it while the next steps are taken."""
        directory = tempfile.mkdtemp(prefix="smt-ray-checkpoint-")
        save_checkpoint(engine, Path(directory), step, stream, loss)
        if self.log:
            self.log.flush()
        ray.train.report(
            {"step": step, "validation/loss": loss},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=f"step-{step:09d}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def save_requested(self) -> bool:
        """Return whether a node is to be taken away; once for each notice."""
        notice = get_train_context().preemption_context.preemption_info
        new = notice is not None and notice != self.notice
        self.notice = notice
        return new

    def skipped(self) -> list[int]:
        """Return the steps that are left out, from the file beside the metrics."""
        file = self.assignment.output / SKIPPED
        return file.read_json()["steps"] if file.exists() else []

    def skip(self, step: int, why: str) -> None:
        """Note a step that is left out, and why, on rank 0."""
        if self.rank == 0:
            steps = sorted({*self.skipped(), step})
            (self.assignment.output / SKIPPED).write_json({"steps": steps})
            cause = why.removeprefix(f"{self.assignment.program.stage}: ")
            self.assignment.board.explain.remote(f"{cause}, which is left out,")

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Write the row, on rank 0."""
        if self.log:
            self.log.add(step, values)

    def stop_requested(self, done: int, loss: float, rate: float) -> bool:
        """Return the driver's wish; only rank 0 asks for it."""
        self.heart.arrive(done + 1)
        return self.reporter.stop_requested(done, loss, rate) if self.reporter else False

    def close(self) -> None:
        """Write the metrics out, and beat no more."""
        self.heart.stop()
        if self.log:
            self.log.close()
