"""Ray Train around the loop: workers, failures, checkpoints kept, and the weights that come out."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError, RayError
from ray.train.torch import TorchTrainer

from smt_ray.cluster import interruption
from smt_ray.cluster.heartbeat import Unanswered
from smt_ray.cluster.interruption import Stopped
from smt_ray.cluster.monitor import monitored
from smt_ray.cluster.session import WORKER_ENVIRONMENT
from smt_ray.config import RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.data.weights import write_weights
from smt_ray.train.checkpoint import Checkpoint
from smt_ray.train.failures import Failures
from smt_ray.train.loop import Program, StepSkipped
from smt_ray.train.metrics import read_metrics
from smt_ray.train.process_group import GroupConfig
from smt_ray.train.resumption import last_whole
from smt_ray.train.worker import Assignment, train_worker

logger = logging.getLogger(__name__)
NAMED = (Unanswered, StepSkipped)
"""Failures that say more than that of a worker which was lost with them."""
BARRIER, ANSWER = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
RUN = "train"
"""Ray Train's name of every training: its directory below the stage's."""
KEPT = 2
"""Best checkpoints that are kept, beside the latest: one to go on from where that is damaged."""


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to `interruption`; Ray Train would abort, and keep the signal for ever."""

    def _register_sigint_handler(self, controller: object) -> None:
        pass


def fit(
    program: Program, runtime: RuntimeConfig, output: Location, *, traced_steps: int = 0
) -> dict[str, float]:
    """Train `program` to its last step, from the latest whole checkpoint in `output`, if any.

    Writes `model.safetensors` (the weights with the lowest validation loss), `metrics.jsonl` and
    `tensorboard/` to `output`. So many steps at the end are traced: `time/collectives_s`.

    Returns:
        Figures: steps, best step, validation losses, median tokens/s.

    Raises:
        Stopped: on SIGTERM or Ctrl-C, after a checkpoint.
        ValueError: for what would fail again: a loss that is not finite (it names the step), a
            damaged shard, too little memory, more failures than `runtime.max_failures`.
    """
    stage = program.stage
    start = last_whole(output / RUN, stage)
    if 0 < start < program.train.steps:
        logger.info("%-10s going on from step %d of %d", stage, start, program.train.steps)
    with monitored(program.config.name) as board, _limited(runtime.timeout_s):
        result = _fit(program, runtime, output, board, traced_steps)
    assert result.metrics
    assert result.best_checkpoints
    if (step := result.metrics["step"]) < program.train.steps:
        logger.info("%s: stopped at step %d; the same command goes on from there", stage, step)
        raise Stopped(interruption.asked() or signal.SIGTERM)
    best, metrics = min(result.best_checkpoints, key=lambda one: one[1]["validation/loss"])
    with TemporaryDirectory() as directory:
        kept = Checkpoint(Location(best.filesystem, best.path), Path(directory))
        write_weights(output, kept.weights())  # mapped from the file, not read a second time
    rates = sorted(
        row["rate/tokens_per_s"] for row in read_metrics(output) if "rate/tokens_per_s" in row
    )
    return {
        "steps": program.train.steps,
        "best_step": metrics["step"],
        "validation_loss": metrics["validation/loss"],
        "tokens_per_s": rates[len(rates) // 2],
    }


def _fit(
    program: Program, runtime: RuntimeConfig, output: Location, board: Any, traced_steps: int
) -> ray.train.Result:
    """Run a training; again if Ray Train's controller is lost, which Ray does not restart."""
    lost = 0
    while True:
        try:
            trainer = _trainer(program, runtime, output, board, traced_steps)
            return _run(trainer, program.stage, runtime)
        except RayActorError as error:
            lost += 1
            if lost > runtime.max_failures:
                raise ValueError(_too_often(program.stage, runtime, error)) from error
            board.explain.remote("lost Ray Train's controller")
            last_whole(output / RUN, program.stage)


def _trainer(
    program: Program, runtime: RuntimeConfig, output: Location, board: Any, traced_steps: int
) -> TorchTrainer:
    assignment = Assignment(program, runtime, output, board, traced_steps)
    failures = Failures(program.config.name, program.stage, board, runtime.timeout_s)
    fewest, most = runtime.fewest_workers, runtime.worker_count
    return _Trainer(
        train_worker,
        train_loop_config={"assignment": assignment},
        torch_config=GroupConfig(timeout_s=ceil(runtime.timeout_s)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]
            use_gpu=runtime.gpu,
            resources_per_worker=runtime.resources,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=RUN,
            storage_path=output.path,
            storage_filesystem=output.filesystem,
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=runtime.max_failures + program.train.skip_nonfinite,
                max_preemption_failures=-1,
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=KEPT,
                checkpoint_score_attribute="validation/loss",
                checkpoint_score_order="min",
            ),
            callbacks=[failures],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )


@contextmanager
def _limited(timeout_s: float) -> Iterator[None]:
    """Limit Ray Train's own barriers, and its wait for a worker that does not answer.

    Its controller takes these variables from the driver. Collectives of the training come first:
    they know who is missing.
    """
    limits = {BARRIER: timeout_s, ANSWER: 1.5 * timeout_s}
    own = {name: str(limit) for name, limit in limits.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _run(trainer: TorchTrainer, stage: str, runtime: RuntimeConfig) -> ray.train.Result:
    """Run a training; what would fail again is a `ValueError` in one line.

    Raises:
        Stopped: if Ray ended under a training that was asked to stop.
        ValueError: naming the field or file at fault.
        RayActorError: if Ray Train's controller was lost.
    """
    try:
        return trainer.fit()
    except ray.train.ControllerError as error:
        failure = error.controller_failure
        if isinstance(failure, torch.OutOfMemoryError):
            rule = f"{stage} ran out of GPU memory; lower it"
            raise ValueError(f"runtime.micro-batch={runtime.micro_batch}: {rule}") from error
        if isinstance(failure, ValueError | ArithmeticError):
            raise ValueError(" ".join(str(failure).split())) from error
        raise
    except ray.train.WorkerGroupError as error:
        lost = list(error.worker_failures.values())
        named = [one for one in lost if isinstance(one, NAMED)]
        if not named and any(not type(one).__module__.startswith("ray.") for one in lost):
            raise
        raise ValueError(_too_often(stage, runtime, [*named, *lost][0])) from error
    except RayError:
        if not interruption.asked():
            raise
        logger.info("%s: Ray ended before it was saved; the last checkpoint stays", stage)
        raise Stopped(interruption.asked()) from None


def _too_often(stage: str, runtime: RuntimeConfig, error: Exception) -> str:
    return (
        f"runtime.max-failures={runtime.max_failures}: {stage} has lost workers more often; "
        f"the same command goes on from its last checkpoint ({shorten(str(error), 200)})"
    )
