"""SMT against BPTT on the synthetic tasks, at equal CPU time: who solves what.

python -m benchmarks.tasks [--quick] [--cells DIR] [--tasks NAME ...] [--lengths L ...]
    [--methods NAME ...] [--seeds N] [--seconds X]

A cell is one method on one task, length and seed; it leaves one JSON file, and a second run makes
only the cells that are missing. Prints, last, one line of JSON: the held-out accuracy of the RNN
from the empty memory. In its keys `smt` has the paper's DMT, `smt_unrolled` the preset's (as "SMT"
in docs/results.md), `one_step` as many steps of DMT from the teacher's memories.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import rates
from benchmarks.cells import OURS, SECONDS, SOLVED, UNROLLED, Cell, run_cell
from benchmarks.pool import Result, measure
from smt_ray.tasks import TASKS

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "tasks"
"""Where the cells of the full table are kept; `--quick` takes the best rate of BPTT from them."""
RATES = (1e-3, 3e-3, 8e-3, 3e-4, 1e-4)
"""Peak learning rates of BPTT; the first counts where none was measured."""
QUICK = (("retrieval", 32), ("retrieval", 64), ("copy", 32))


def make(cells: Iterable[Cell], directory: Path) -> dict[Cell, Result]:
    """Return the result of every cell, from its file or made now."""
    named = {cell.name: cell for cell in cells}
    jobs = {name: partial(run_cell, cell) for name, cell in named.items()}
    return {named[name]: result for name, result in measure(jobs, directory).items()}


def best_rate(
    task: str, length: int, method: str, directory: Path, seconds: float = SECONDS
) -> float:
    """Return the best rate of the cells that were measured."""
    files = sorted(directory.glob(f"{task}-L{length}-{method}-rate*.json"))
    cells = [json.loads(file.read_text()) for file in files]
    found = rates.by_rate(cell for cell in cells if cell["seconds"] == seconds)
    return rates.best(found) if found else RATES[0]


def quick(directory: Path, seconds: float) -> dict[str, float]:
    """Measure SMT, its control, its teacher and BPTT on three tasks, one seed."""
    cells = [
        Cell(task, length, method, 0, seconds=seconds)
        for task, length in QUICK for method in ("smt", "smt_unrolled")
    ]  # fmt: skip
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
        elif cell.method == "smt_unrolled":
            figures[f"{prefix}_smt_unrolled_one_step"] = result["one_step"]
    return figures


def full(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods; BPTT's rates on the first seed, then the best of them on all seeds."""
    pairs = [(task, length) for task in options.tasks for length in options.lengths]
    seeds, seconds = range(options.seeds), options.seconds
    unrolled = [method for method in options.methods if method in UNROLLED]
    first = [
        Cell(task, length, method, 0, rate, seconds)
        for task, length in pairs for method in unrolled for rate in RATES
    ]  # fmt: skip
    first += [
        Cell(*pair, method, seed, seconds=seconds)
        for pair in pairs for method in options.methods if method in OURS for seed in seeds
    ]  # fmt: skip
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
            best = 0.0 if method in OURS else rate(task, length, method)
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
        row[f"{prefix}_teacher"] = fmean(result["teacher"] for result in results)
        row[f"{prefix}_one_step"] = results[0]["one_step"]
    return row


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=about)
    parser.add_argument("--quick", action="store_true", help="three tasks, one seed")
    parser.add_argument(
        "--cells", type=Path, help="directory of results (docs/results/tasks; --quick: a new one)"
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument(
        "--methods", nargs="+", choices=OURS + UNROLLED, default=["smt", "bptt"],
        help="smt_finetune ends with BPTT; BPTT's rates are chosen on the first seed",
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
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="smt-ray-tasks-") as fresh:
            print(json.dumps(quick(options.cells or Path(fresh), options.seconds)))
    else:
        print(json.dumps(full(options.cells or RESULTS, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
