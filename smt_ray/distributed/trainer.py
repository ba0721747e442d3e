"""Ray Train around the loop: workers, failures, checkpoints kept, and the weights that come out."""

from pathlib import Path
from tempfile import TemporaryDirectory

import ray.train
from ray.train.torch import TorchTrainer
from safetensors.torch import save

from smt_ray.config import RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.distributed.checkpoint import Checkpoint
from smt_ray.distributed.loop import Assignment, Program, train_worker
from smt_ray.distributed.metrics import read_metrics
from smt_ray.distributed.monitor import Monitor
from smt_ray.distributed.prometheus import Failures
from smt_ray.distributed.session import WORKER_ENVIRONMENT


class Stopped(Exception):
    """Training stopped at a checkpoint because it was asked to; the same command goes on."""


def fit(
    program: Program, runtime: RuntimeConfig, output: Location, *, traced_steps: int = 0
) -> dict[str, float]:
    """Train `program` to its last step, from the latest checkpoint in `output` if there is one.

    Writes `model.safetensors` (the weights with the lowest validation loss), `metrics.jsonl` and
    `tensorboard/` to `output`. So many steps at the end are traced: `time/collectives_s`.

    Returns:
        Figures: steps, best step, validation losses, median tokens/s.

    Raises:
        Stopped: on SIGTERM, after a checkpoint.
        ValueError: if a loss is not finite; it names the step.
    """
    with Monitor() as monitor:
        assignment = Assignment(program, runtime, output, monitor.board, traced_steps)
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]
            train_loop_config={"assignment": assignment},
            scaling_config=ray.train.ScalingConfig(
                num_workers=runtime.workers,
                use_gpu=runtime.gpu,
                resources_per_worker={"CPU": 1, "GPU": 1} if runtime.gpu else {"CPU": 1},
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name="train",
                storage_path=output.path,
                storage_filesystem=output.filesystem,
                failure_config=ray.train.FailureConfig(max_failures=runtime.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=1,
                    checkpoint_score_attribute="validation/loss",
                    checkpoint_score_order="min",
                ),
                callbacks=[Failures(program.config.name, program.stage)],  # type: ignore[list-item]
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            ),
        )
        result = trainer.fit()
    problem = result.return_value  # type: ignore[attr-defined]
    if problem:
        raise ValueError(problem)
    assert result.metrics
    assert result.best_checkpoints
    if result.metrics["step"] < program.train.steps:
        raise Stopped(f"{program.stage} stopped at step {result.metrics['step']}")
    best, metrics = min(result.best_checkpoints, key=lambda kept: kept[1]["validation/loss"])
    with TemporaryDirectory() as directory:
        weights = Checkpoint(Path(best.to_directory(directory))).weights()
        (output / "model.safetensors").write_bytes(save(weights))
    rates = sorted(
        row["rate/tokens_per_s"] for row in read_metrics(output) if "rate/tokens_per_s" in row
    )
    return {
        "steps": program.train.steps,
        "best_step": metrics["step"],
        "validation_loss": metrics["validation/loss"],
        "tokens_per_s": rates[len(rates) // 2],
    }
