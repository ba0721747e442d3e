"""Training on gloo ranks in processes of their own, with the project's programs and loop."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from smt_ray.cluster.zero import prepare_process
from smt_ray.config import RuntimeConfig, TrainConfig
from smt_ray.objectives.objective import Objective
from smt_ray.train import programs
from smt_ray.train.engine import DeepSpeedEngine, Engine
from smt_ray.train.host import InProcess
from smt_ray.train.loop import Program
from smt_ray.train.loop import train as run_loop
from tests.samples import random_weights

Runs = dict[str, dict[str, Any]]


def launch(work: Callable[..., Runs], world: int, place: Path, *arguments: Any) -> Runs:
    """Run `work` on `world` ranks; return what rank 0's returned."""
    spawn(_rank, (work, world, place, arguments), nprocs=world)
    return json.loads((place / "runs.json").read_text())


def _rank(
    rank: int, work: Callable[..., Runs], world: int, place: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    prepare_process(RuntimeConfig(device="cpu"))
    programs.IN_FLIGHT = 2  # so few that a window is visited several times
    store = f"file://{place / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    runs = work(*arguments)
    if rank == 0:
        (place / "runs.json").write_text(json.dumps(runs))
    dist.destroy_process_group()


class RankHost(InProcess):
    """A rank of the process group, with DeepSpeed under the loop; it ends at step `stop`."""

    look_s = 0.0

    def __init__(
        self, runtime: RuntimeConfig, group: int, stop: int, directory: Path | None
    ) -> None:
        super().__init__(directory)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.runtime, self.group, self.stop = runtime, group, stop

    def engine(self, objective: Objective, train: TrainConfig) -> Engine:
        self.built = DeepSpeedEngine(objective, train, self.runtime, self.device, group=self.group)
        return self.built

    def stop_requested(self, done: int, loss: float, rate: float) -> bool:
        return done + 1 == self.stop


class FromRandomWeights:
    """A program whose objective begins with random weights, so small that rounding stays small."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def objective(self) -> Objective:
        objective = random_weights(self._program.objective())
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.mul_(0.7)
        return objective


def train(
    program: Program, stop: int, *, directory: Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Train to step `stop` from random weights, or from the checkpoint in `directory`.

    Args:
        program: what to train.
        stop: the last step.
        directory: where the latest checkpoint is kept.
        **settings: fields of `RuntimeConfig`.

    Returns:
        As `figures` does.
    """
    world = dist.get_world_size()
    runtime = RuntimeConfig(device="cpu", workers=world, log_every=1, **settings)
    host = RankHost(runtime, program.group, stop, directory)
    run_loop(FromRandomWeights(program), host, runtime)
    dist.barrier()
    host.built.destroy()
    return figures(host)


def train_plainly(program: Program, rows: int) -> dict[str, Any]:
    """Train to the last step in this process, without DeepSpeed; `rows` make a micro-batch."""
    host = InProcess(rows=rows)
    run_loop(FromRandomWeights(program), host, RuntimeConfig(log_every=1))
    return figures(host)


def figures(host: InProcess) -> dict[str, Any]:
    """Return metrics by step as lists, and the figures of two validations.

    `before` are those of the first one that this host made, `validation` those of the last.
    """
    rows: dict[str, list[float]] = {}
    validations: list[dict[str, float]] = []
    for row in host.rows_of_metrics:
        held_out = {k: v for k, v in row.items() if k.startswith(("validation/", "drift/"))}
        if held_out:
            validations.append(held_out)
        for name, value in row.items():
            if name.startswith(("loss/", "norm/")):
                rows.setdefault(name, []).append(value)
    return {**rows, "before": validations[0], "validation": validations[-1]}
