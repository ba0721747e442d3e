"""SMT against BPTT on the synthetic tasks, at equal CPU time: who solves what.

python -m benchmarks.tasks [--quick] [--cells DIR] [--tasks NAME ...] [--lengths L ...] [--seeds N]

A cell is one method on one task, length and seed; it leaves one JSON file, and a second run makes
only the cells that are missing. Prints, last, one line of JSON:
the held-out accuracy of the RNN from the empty memory.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.budget import Outcome
from benchmarks.pool import Result, measure
from benchmarks.smt import (
    Shares,
    Source,
    rnn_score,
    teacher_score,
    train_bptt,
    train_dmt,
    train_teacher,
)
from benchmarks.timer import now
from smt_ray.config import RunConfig, TaskConfig, TrainConfig
from smt_ray.data.reader import Batch, Stream
from smt_ray.model.rnn import RNN
from smt_ray.objectives.objective import hashed
from smt_ray.presets import on_task
from smt_ray.tasks import TASKS

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "tasks"
"""Where the cells of the full table are kept; `--quick` takes the best rate of BPTT from them."""
SOLVED = 0.95
ENOUGH = 0.999
"""Score that ends DMT or BPTT early, twice in a row; a teacher goes on, for its cell's sake."""
RATES = (1e-3, 3e-4, 1e-4)
SECONDS = 300.0
SHARES = Shares(teacher=0.5, transition=0.1)
LABELLED = 4096
"""Sequences that SMT labels."""
HELD_OUT = 1024
QUICK = (("retrieval", 32), ("retrieval", 64), ("copy", 32))


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    task: str
    length: int
    method: str
    """`smt`, `bptt`, `bptt_curriculum`, `bptt_truncated`, or `lstm` (unnormalised, by BPTT)."""
    seed: int
    rate: float = 0.0
    """Peak learning rate of BPTT; SMT has its preset's."""
    seconds: float = SECONDS
    """CPU seconds for all stages together."""

    @property
    def name(self) -> str:
        """Name of its result."""
        rate = f"-rate{self.rate:g}" if self.rate else ""
        seconds = f"-{self.seconds:g}s" if self.seconds != SECONDS else ""
        return f"{self.task}-L{self.length}-{self.method}{rate}{seconds}-seed{self.seed}"


class Generated(Stream):
    """Fresh sequences of a task in every batch."""

    def __init__(self, task: str, config: TaskConfig, length: int, rows: int, seed: int) -> None:
        """Remember what to draw."""
        self.task, self.config, self.length = TASKS[task], config, length
        self.rows, self.seed = rows, seed

    def batch(self, step: int) -> Batch:
        """Draw the batch of `step`."""
        seed = int(hashed(self.seed, step))
        inputs, targets = self.task.generate(self.config, self.length, self.rows, seed)
        ids = torch.arange(self.rows) + step * self.rows
        return {"sequence_id": ids, "inputs": inputs, "targets": targets}


class TaskSource(Source):
    """A task as SMT and BPTT take it; with `growing`, training sequences start short."""

    def __init__(self, config: RunConfig, seed: int, growing: float = 0.0) -> None:
        """Draw from `seed`; `growing` is the CPU seconds over which lengths reach L."""
        self.config, self.seed, self.growing = config, seed, growing
        self.task = config.data.source.removeprefix("task:")
        self.vocabulary = TASKS[self.task].vocabulary(config.data.task)

    def training(self, batch: int) -> Stream:
        """Return fresh training batches."""
        length = self.config.data.sequence_length
        if not self.growing:
            return self._stream(length, batch, self.seed)
        stages = [self._stream(max(length // n, self.least), batch, self.seed) for n in (4, 2, 1)]
        return Growing(stages, self.growing)

    @property
    def least(self) -> int:
        """Shortest length at which the task exists."""
        task, config = TASKS[self.task], self.config.data.task
        for length in range(1, self.config.data.sequence_length):
            try:
                task.check(config, length)
            except ValueError:
                continue
            return length
        return self.config.data.sequence_length

    def held_out(self, split: str = "validation", times: int = 1) -> Batch:
        """Return sequences of L * `times` inputs that no training sees."""
        seed = -1 - ["validation", "test"].index(split)
        length = self.config.data.sequence_length * times
        return self._stream(length, HELD_OUT // times, seed).batch(0)

    def _stream(self, length: int, rows: int, seed: int) -> Generated:
        return Generated(self.task, self.config.data.task, length, rows, seed)


class Growing(Stream):
    """A curriculum: each of several streams for an equal share of the CPU time."""

    def __init__(self, streams: Sequence[Stream], seconds: float) -> None:
        """Begin now."""
        self.streams, self.share = streams, seconds / len(streams)
        self.began = now()

    def batch(self, step: int) -> Batch:
        """Return the batch of the stream whose time it is."""
        turn = int((now() - self.began) / self.share)
        return self.streams[min(turn, len(self.streams) - 1)].batch(step)


def run_cell(cell: Cell) -> Result:
    """Train and score one cell."""
    config = on_task("tiny", f"task:{cell.task}", cell.length)
    result = _smt(cell, config) if cell.method == "smt" else _bptt(cell, config)
    return {**asdict(cell), **result}


def _smt(cell: Cell, config: RunConfig) -> dict[str, Any]:
    """Train teacher, transition and DMT, and the control of DMT with as many steps."""
    for stage in ("teacher", "transition.train", "dmt.train"):
        config = config.override(f"{stage}.seed", cell.seed)
    source = TaskSource(config, cell.seed)
    validation, test = source.held_out("validation"), source.held_out("test")

    def score(rnn: RNN) -> float:
        return rnn_score(rnn, validation).accuracy

    trained = train_teacher(
        config, source, cell.seconds, SHARES, LABELLED,
        score=lambda teacher: teacher_score(teacher, validation).accuracy,
    )  # fmt: skip

    left = cell.seconds - trained.seconds
    dmt, outcome = train_dmt(config, source, trained, config.dmt, left, enough=ENOUGH, score=score)
    control = replace(config.dmt, mode="one_step")
    one_step, _ = train_dmt(config, source, trained, control, 4 * left, steps=outcome.steps)
    before = {"teacher": trained.stages["teacher"], "labels": trained.stages["labels"]}
    solved = outcome.solved_after(SOLVED)
    taught = trained.stages["teacher"].solved_after(SOLVED)
    return {
        "accuracy": rnn_score(dmt.rnn, test).accuracy,
        "bits": rnn_score(dmt.rnn, validation).bits,
        "one_step": rnn_score(one_step.rnn, test).accuracy,
        "teacher": teacher_score(trained.teacher, test).accuracy,
        "accuracy_4L": rnn_score(dmt.rnn, source.held_out("test", 4)).accuracy,
        "solved_after": None if solved is None else solved + trained.seconds,
        "teacher_solved_after": taught,
        "used": trained.seconds + outcome.seconds,
        "tokens": sum(stage.tokens for stage in (*trained.stages.values(), outcome)),
        "stages": {
            name: {"seconds": stage.seconds, "steps": stage.steps, "tokens": stage.tokens}
            for name, stage in {**before, "dmt": outcome}.items()
        },
        "scores": {"teacher": trained.stages["teacher"].scores, "dmt": outcome.scores},
    }


def _bptt(cell: Cell, config: RunConfig) -> dict[str, Any]:
    """Train the same cell and readout by unrolling."""
    if cell.method == "lstm":
        config = replace(config, model=replace(config.model, cell="lstm"))
    growing = cell.seconds if cell.method == "bptt_curriculum" else 0.0
    source = TaskSource(config, cell.seed, growing)
    validation, test = source.held_out("validation"), source.held_out("test")
    outcome: Outcome
    rnn, outcome = train_bptt(
        config,
        source,
        _bptt_settings(config, cell),
        cell.seconds,
        span=32 if cell.method == "bptt_truncated" else 0,
        enough=ENOUGH,
        score=lambda rnn: rnn_score(rnn, validation).accuracy,
    )
    return {
        "accuracy": rnn_score(rnn, test).accuracy,
        "bits": rnn_score(rnn, validation).bits,
        "accuracy_4L": rnn_score(rnn, source.held_out("test", 4)).accuracy,
        "solved_after": outcome.solved_after(SOLVED),
        "used": outcome.seconds,
        "tokens": outcome.tokens,
        "stages": {"bptt": {"seconds": outcome.seconds, "steps": outcome.steps}},
        "scores": {"bptt": outcome.scores},
    }


def _bptt_settings(config: RunConfig, cell: Cell) -> TrainConfig:
    """Return the teacher's schedule, the batch of DMT, and the rate and seed of the cell.

    A rollout costs its kernels' starts, so larger batches are nearly free to BPTT.
    """
    batch = config.dmt.train.global_batch
    rate, seed = cell.rate, cell.seed
    return replace(config.teacher, global_batch=batch, learning_rate=rate, seed=seed)


def make(cells: Iterable[Cell], directory: Path) -> dict[Cell, Result]:
    """Return the result of every cell, from its file or made now."""
    named = {cell.name: cell for cell in cells}
    jobs = {name: partial(run_cell, cell) for name, cell in named.items()}
    return {named[name]: result for name, result in measure(jobs, directory).items()}


def best_rate(
    task: str, length: int, method: str, directory: Path, seconds: float = SECONDS
) -> float:
    """Return the rate with the fewest bits on validation among the cells that were measured."""
    found: dict[float, float] = {}
    for rate in RATES:
        file = directory / f"{Cell(task, length, method, 0, rate, seconds).name}.json"
        if file.exists():
            found[rate] = json.loads(file.read_text())["bits"]
    return min(found, key=lambda rate: found[rate]) if found else RATES[0]


def quick(directory: Path, seconds: float) -> dict[str, float]:
    """Measure SMT, its control, its teacher and BPTT on three tasks, one seed."""
    cells = [Cell(task, length, "smt", 0, seconds=seconds) for task, length in QUICK]
    for task, length in QUICK:
        rate = best_rate(task, length, "bptt", RESULTS)
        cells.append(Cell(task, length, "bptt", 0, rate, seconds))
    figures = {}
    for cell, result in make(cells, directory).items():
        prefix = f"{cell.task}_L{cell.length}"
        figures[f"{prefix}_{cell.method}"] = result["accuracy"]
        if cell.method == "smt":
            figures[f"{prefix}_one_step"] = result["one_step"]
            figures[f"{prefix}_teacher"] = result["teacher"]
    return figures


def full(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods; BPTT's rates on the first seed, then the best of them on all seeds."""
    pairs = [(task, length) for task in options.tasks for length in options.lengths]
    seeds, seconds = range(options.seeds), options.seconds
    unrolled = [method for method in options.methods if method != "smt"]
    first = [
        Cell(task, length, method, 0, rate, seconds)
        for task, length in pairs for method in unrolled for rate in RATES
    ]  # fmt: skip
    if "smt" in options.methods:
        first += [Cell(*pair, "smt", seed, seconds=seconds) for pair in pairs for seed in seeds]
    made = make(first, directory)
    rate = partial(best_rate, directory=directory, seconds=seconds)
    again = [
        Cell(task, length, method, seed, rate(task, length, method), seconds)
        for task, length in pairs for method in unrolled for seed in seeds
    ]  # fmt: skip
    made |= make(again, directory)
    figures: dict[str, Any] = {}
    for task, length in pairs:
        for method in options.methods:
            best = 0.0 if method == "smt" else rate(task, length, method)
            results = [made[Cell(task, length, method, seed, best, seconds)] for seed in seeds]
            figures |= _row(f"{task}_L{length}", method, results)
    return figures


def _row(prefix: str, method: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean accuracy, seeds solved, and the mean time to solve where all are solved."""
    accuracies = [result["accuracy"] for result in results]
    times = [result["solved_after"] for result in results]
    row: dict[str, Any] = {
        f"{prefix}_{method}": fmean(accuracies),
        f"{prefix}_{method}_solved": sum(accuracy >= SOLVED for accuracy in accuracies),
        f"{prefix}_{method}_seconds": None if None in times else fmean(times),
    }
    if method == "smt":
        for name in ("one_step", "teacher"):
            row[f"{prefix}_{name}"] = fmean(result[name] for result in results)
    return row


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    methods = ("smt", "bptt", "bptt_curriculum", "bptt_truncated", "lstm")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three tasks, one seed, anew")
    parser.add_argument("--cells", type=Path, help="directory of results (docs/results/tasks)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--methods", nargs="+", choices=methods, default=["smt", "bptt"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="CPU seconds a cell")
    options = parser.parse_args(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="smt-ray-tasks-") as fresh:
            print(json.dumps(quick(options.cells or Path(fresh), options.seconds)))
    else:
        print(json.dumps(full(options.cells or RESULTS, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
