"""Training on gloo ranks in processes of their own, with the project's programs and stepper."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from smt_ray.config import RuntimeConfig
from smt_ray.distributed.checkpoint import Checkpoint, save_checkpoint
from smt_ray.distributed.engine import prepare_process
from smt_ray.distributed.loop import Program, learning_rate
from smt_ray.distributed.stepper import Stepper
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
    prepare_process(RuntimeConfig())
    store = f"file://{place / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    runs = work(*arguments)
    if rank == 0:
        (place / "runs.json").write_text(json.dumps(runs))
    dist.destroy_process_group()


def train(
    program: Program,
    stop: int,
    *,
    start: Path | None = None,
    save: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train to step `stop`, as the loop does, from random weights or the checkpoint in `start`.

    Args:
        program: what to train.
        stop: the last step.
        start: where an earlier call saved.
        save: where to save after the last step.
        **settings: fields of `RuntimeConfig`.

    Returns:
        Means over the ranks: metrics by step as lists, and `validation` at the end.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    saved = Checkpoint(start) if start else None
    objective = random_weights(program.objective())
    runtime = RuntimeConfig(workers=world, **settings)
    stepper = Stepper(objective, program.train, runtime, torch.device("cpu"), saved)
    stream = program.stream(rank, world, saved.streams() if saved else [])

    def batch(stream, step):
        progress = torch.tensor(step / program.train.steps)
        return {**stream.batch(step), "step": torch.tensor(step), "progress": progress}

    first = saved.step if saved else 0
    if saved:
        stepper.restore(saved, batch(stream, first))
    held_out = batch(program.validation(rank, world), 0)
    if save and not saved:
        save.mkdir(exist_ok=True)
        stepper.validate(held_out)
        save_checkpoint(stepper.engine, save, 0, stream.state(), 0.0)
    rows = []
    for step in range(first, stop):
        done = stepper.step(batch(stream, step), learning_rate(program.train, step))
        if done.carry is not None:
            stream.carry(step, done.carry)
        rows.append(stepper.mean(done.metrics))
    figures = stepper.validate(held_out)
    kept = stream.probe()
    if kept is not None:
        figures |= stepper.probe({**kept, "step": torch.tensor(stop)})
    validation = stepper.mean(figures)
    if save:
        save.mkdir(exist_ok=True)
        save_checkpoint(stepper.engine, save, stop, stream.state(), 0.0)
        dist.barrier()
    stepper.engine.destroy()
    return {name: [row[name] for row in rows] for name in rows[0]} | {"validation": validation}
