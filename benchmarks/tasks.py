"""SMT against BPTT on the synthetic tasks, at equal CPU time: who solves what.

python -m benchmarks.tasks [--quick] [--results FILE] [--tasks NAME ...] [--lengths L ...]
    [--methods NAME ...] [--seeds N] [--seconds X]

A cell is one method on one task, length and seed; a second run makes only the cells that are
missing in FILE. Prints, last, one line of JSON: the held-out accuracy of the RNN from the empty
memory. In its keys `smt` has the paper's DMT, `smt_unrolled` the preset's (as "SMT" in
docs/results.md), `one_step` as many steps of DMT from the teacher's memories.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.memory import TaskSource
from benchmarks.pool import RESULTS, Result, best_rate, measure, read
from benchmarks.smt import (
    Outcome,
    Scoring,
    Shares,
    one_step_gradients,
    rnn_score,
    teacher_score,
    told_ahead,
    train_bptt,
    train_dmt,
    train_teacher,
    with_bptt,
)
from smt_ray.config import RunConfig
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.pipeline.recipes import on_task
from smt_ray.tasks import TASKS

FILE = RESULTS / "tasks.json"
OURS = ("smt", "smt_curriculum", "smt_unrolled", "smt_unrolled_curriculum")
UNROLLED = ("bptt", "bptt_curriculum", "bptt_truncated", "bptt_parallel", "lstm")
RATES = (1e-3, 3e-3, 8e-3, 3e-4, 1e-4)
"""Peak learning rates of BPTT; the first counts where none was measured."""
QUICK = (("retrieval", 32), ("retrieval", 64), ("copy", 32))
SOLVED = 0.95
ENOUGH = 0.999
"""Score that ends DMT or BPTT early, twice in a row; a teacher goes on, for its cell's sake."""
SECONDS = 300.0
SHARES = Shares(teacher=0.5, transition=0.1)
CURRICULUM = 3
"""Lengths of a curriculum: L / 4, L / 2, L."""
ONE_STEP_RATE, ONE_STEP_RATES = 5e-4, {"keysvalues": 2e-3}
"""Peak rates of DMT with gradients of one step."""
LABELLED = 4096
"""Sequences that SMT labels in a cell of `SECONDS`; in a longer one as many more."""
SPAN = 8
"""Timesteps of a part in `bptt_parallel`; `bptt_truncated` cuts every 32."""


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    task: str
    length: int
    method: str
    """With the paper's DMT: `smt`, `smt_curriculum` (of the teacher's lengths). With the preset's:
    `smt_unrolled`, `smt_unrolled_curriculum`. By BPTT: `bptt`, `bptt_curriculum`, `bptt_truncated`,
    `bptt_parallel`, `lstm` (unnormalised)."""
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


def run_cell(cell: Cell) -> Result:
    """Train and score one cell."""
    config = on_task("tiny", f"task:{cell.task}", cell.length).override("seed", cell.seed)
    result = _smt(cell, config) if cell.method in OURS else _bptt(cell, config)
    return {**asdict(cell), **result}


def _smt(cell: Cell, config: RunConfig) -> Result:
    """Train all stages of SMT, and on the first seed as many steps of DMT's control."""
    if not cell.method.startswith("smt_unrolled"):
        rate = ONE_STEP_RATES.get(cell.task, ONE_STEP_RATE)
        config = one_step_gradients(config, rate, mode="sequential")
    if cell.method.endswith("curriculum"):
        config = config.override("teacher.curriculum", CURRICULUM)
    source = TaskSource(config.data, cell.seed)
    validation, test = source.held_out("validation"), source.held_out("test")
    trained = train_teacher(
        config, source, cell.seconds, SHARES, round(LABELLED * max(1.0, cell.seconds / SECONDS)),
        Scoring(lambda teacher: teacher_score(teacher, validation).accuracy),
    )  # fmt: skip
    left, one_step = cell.seconds - trained.seconds, None
    dmt, outcome = train_dmt(config, source, trained, left, scoring=_accuracy(validation))
    if cell.seed == 0:
        control = config.override("dmt.mode", "one_step")
        steps = float(max(1, outcome.steps))
        told, _ = train_dmt(control, source, trained, 4 * left, steps=steps)
        one_step = rnn_score(told.rnn, test).accuracy
    longer, stages = source.held_out("test", 4), {**trained.stages, "dmt": outcome}
    return {
        **_figures(dmt.rnn, source, stages),
        "one_step": one_step,
        "teacher": teacher_score(trained.teacher, test).accuracy,
        "told_ahead": told_ahead(trained.teacher, test).accuracy,
        "teacher_4L": teacher_score(trained.teacher, longer).accuracy,
        "teacher_solved_after": stages["teacher"].solved_after(SOLVED),
    }


def _bptt(cell: Cell, config: RunConfig) -> Result:
    """Train the same cell and readout by unrolling."""
    unroll: dict[str, Any] = {}
    if cell.method == "lstm":  # it has gates of its own, and halves its tokens: one more if odd
        even = config.model.memory_tokens + config.model.memory_tokens % 2
        own = {"cell": "benchmarks.lstm:LstmCell", "memory_tokens": even}
        config = config.update({"model": own})
    elif cell.method == "bptt_truncated":
        unroll = {"mode": "truncated", "span": 32}
    elif cell.method == "bptt_parallel":  # one that stays for a visit a part ends as a rollout
        unroll = {"mode": "parallel", "span": SPAN, "visits": cell.length / SPAN}
    config = with_bptt(config, cell.rate, **unroll)
    source = TaskSource(config.data, cell.seed)
    stages = CURRICULUM if cell.method == "bptt_curriculum" else 1
    scoring = _accuracy(source.held_out("validation"))
    rnn, outcome = train_bptt(config, source, cell.seconds, curriculum=stages, scoring=scoring)
    return _figures(rnn, source, {"bptt": outcome})


def _accuracy(validation: Any) -> Scoring:
    def accuracy(training: Dmt | Bptt) -> float:
        return rnn_score(training.rnn, validation).accuracy

    return Scoring(accuracy, enough=ENOUGH)


def _figures(rnn: Any, source: TaskSource, stages: dict[str, Outcome]) -> Result:
    """Return what all methods have in common."""
    return {
        "accuracy": rnn_score(rnn, source.held_out("test")).accuracy,
        "bits": rnn_score(rnn, source.held_out("validation")).bits,
        "accuracy_4L": rnn_score(rnn, source.held_out("test", 4)).accuracy,
        "solved_after": _solved_after(stages),
        "used": sum(stage.seconds for stage in stages.values()),
        "tokens": sum(stage.tokens for stage in stages.values()),
        "stages": {
            name: {"seconds": stage.seconds, "steps": stage.steps, "tokens": stage.tokens}
            for name, stage in stages.items()
        },
        "scores": {name: stage.scores for name, stage in stages.items() if stage.scores},
    }


def _solved_after(stages: dict[str, Outcome]) -> float | None:
    """Return the CPU seconds, of all stages so far, at which the RNN first had solved the task."""
    used = 0.0
    for name, stage in stages.items():
        after = stage.solved_after(SOLVED) if name in {"dmt", "bptt"} else None
        if after is not None:
            return used + after
        used += stage.seconds
    return None


def make(cells: Iterable[Cell], file: Path) -> dict[Cell, Result]:
    """Return the result of every cell, from the file or made now."""
    named = {cell.name: cell for cell in cells}
    jobs = {name: partial(run_cell, cell) for name, cell in named.items()}
    return {named[name]: result for name, result in measure(jobs, file).items()}


def rate_of(task: str, length: int, method: str, file: Path, seconds: float = SECONDS) -> float:
    """Return the best rate of the cells that were measured on the first seed."""
    own = (task, length, method, seconds)
    cells = [
        cell
        for cell in read(file).values()
        if (cell["task"], cell["length"], cell["method"], cell["seconds"]) == own
    ]
    return best_rate(cells) if any(not cell["seed"] for cell in cells) else RATES[0]


def quick(file: Path, seconds: float) -> dict[str, float]:
    """Measure SMT, its control, its teacher and BPTT on three tasks, one seed."""
    cells = [
        Cell(*pair, method, 0, rate_of(*pair, method, FILE) if method == "bptt" else 0.0, seconds)
        for method in ("smt", "smt_unrolled", "bptt") for pair in QUICK
    ]  # fmt: skip
    figures = {}
    for cell, result in make(cells, file).items():
        prefix = f"{cell.task}_L{cell.length}"
        figures[f"{prefix}_{cell.method}"] = result["accuracy"]
        if cell.method == "smt":
            figures[f"{prefix}_one_step"] = result["one_step"]
            figures[f"{prefix}_teacher"] = result["teacher"]
        elif cell.method == "smt_unrolled":
            figures[f"{prefix}_smt_unrolled_one_step"] = result["one_step"]
    return figures


def full(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods; BPTT's rates on the first seed, then the best of them on all seeds."""
    pairs = [(task, length) for task in options.tasks for length in options.lengths]
    seeds, seconds = range(options.seeds), options.seconds
    first = [
        Cell(*pair, method, 0, rate, seconds)
        for pair in pairs for method in options.methods if method in UNROLLED for rate in RATES
    ]  # fmt: skip
    make(first, file)
    figures: dict[str, Any] = {}
    best = {
        (*pair, method): rate_of(*pair, method, file, seconds) if method in UNROLLED else 0.0
        for pair in pairs for method in options.methods
    }  # fmt: skip
    cells = {key: [Cell(*key, seed, rate, seconds) for seed in seeds] for key, rate in best.items()}
    made = make([cell for row in cells.values() for cell in row], file)
    for (task, length, method), row in cells.items():
        figures |= _row(f"{task}_L{length}", method, [made[cell] for cell in row])
    return figures


def _row(prefix: str, method: str, results: list[Result]) -> dict[str, Any]:
    """Return mean accuracy, seeds solved, and the mean time to solve where all are solved."""
    accuracies = [result["accuracy"] for result in results]
    times = [result["solved_after"] for result in results]
    row: dict[str, Any] = {
        f"{prefix}_{method}": fmean(accuracies),
        f"{prefix}_{method}_solved": sum(accuracy >= SOLVED for accuracy in accuracies),
        f"{prefix}_{method}_seconds": None if None in times else fmean(times),
    }
    if method == "smt":
        row[f"{prefix}_teacher"] = fmean(result["teacher"] for result in results)
        row[f"{prefix}_one_step"] = results[0]["one_step"]
    return row


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=about)
    parser.add_argument("--quick", action="store_true", help="three tasks, one seed")
    parser.add_argument(
        "--results", type=Path, help="file of results (docs/results/tasks.json; --quick: a new one)"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument(
        "--methods", nargs="+", choices=OURS + UNROLLED, default=["smt", "bptt"],
        help="BPTT's rates are chosen on the first seed",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="CPU-seconds of the reference core, a cell"
    )
    options = parser.parse_args(arguments)
    fixed = ("tasks", "lengths", "methods", "seeds")
    changed = [name for name in fixed if getattr(options, name) != parser.get_default(name)]
    if options.quick and changed:
        parser.error(f"--quick measures a fixed choice: leave out --{changed[0]}")
    with tempfile.TemporaryDirectory(prefix="smt-ray-tasks-") as fresh:
        if options.quick:
            figures = quick(options.results or Path(fresh) / "tasks.json", options.seconds)
        else:
            figures = full(options.results or FILE, options)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
