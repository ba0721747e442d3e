"""The tables of docs/results.md, from the results in docs/results/*.json.

python -m benchmarks.tables
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from benchmarks import ablations, method
from benchmarks.pool import RESULTS, Result, best_rate, read
from benchmarks.tasks import OURS, SECONDS, SOLVED
from smt_ray.pipeline.recipes import on_task

GLANCE = {
    "smt_unrolled": "SMT",
    "smt_unrolled_curriculum": "SMT, short first",
    "smt": "SMT, one-step gradients",
    "bptt": "BPTT",
    "bptt_curriculum": "BPTT, short first",
    "bptt_parallel": "BPTT in parallel",
    "lstm": "LSTM",
}
"""Columns of the first table; the last is another cell."""
LENGTHS = {
    "smt": "SMT and DMT",
    "smt_unrolled": "DMT unrolled",
    "bptt": "BPTT",
    "bptt_truncated": "BPTT, cut every 64",
    "bptt_parallel": "BPTT in parallel",
}
CONTROLLED = ("smt", "smt_unrolled", "smt_unrolled_curriculum")
APART, ALIKE = 0.05, 0.005
"""Accuracies by which the methods of a row must differ to have a best one, and may to share it."""
Group = tuple[str, int, float, str]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers have three digits after the point, None is a dash."""

    def text(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = [head, ["---"] * len(head), *([text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_seeds(values: Sequence[float], digits: int = 3) -> str | None:
    """Return the mean, and least and greatest where there are several; None of none."""
    if not values:
        return None
    mean, *ends = (f"{value:,.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({ends[0]} to {ends[1]})"


def figure(name: str, cells: Sequence[Result]) -> str | None:
    """Return a figure over the cells that have it, if there are such."""
    return over_seeds([cell[name] for cell in cells if cell.get(name) is not None])


def best_cells(results: Iterable[Result]) -> dict[Group, tuple[list[Result], int]]:
    """Return for each task, length, time and method its cells at the best rate; rates tried."""
    groups: dict[Group, list[Result]] = {}
    for cell in results:
        group = (cell["task"], cell["length"], cell["seconds"], cell["method"])
        groups.setdefault(group, []).append(cell)
    found = {}
    for group in sorted(groups):
        cells = groups[group]
        rates = {cell["rate"] for cell in cells}
        first = any(not cell["seed"] for cell in cells)
        rate = best_rate(cells) if first else max(rates)
        found[group] = [cell for cell in cells if cell["rate"] == rate], len(rates)
    return found


def at_a_glance(best: dict[Group, tuple[list[Result], int]]) -> str:
    """Return mean accuracies (and of how many seeds), the best of the same cell in bold."""
    rows = []
    for task, length in sorted({group[:2] for group in best}):
        found = {
            method: best[group][0]
            for method in GLANCE
            if (group := (task, length, SECONDS, method)) in best
        }
        means = {name: fmean(cell["accuracy"] for cell in cells) for name, cells in found.items()}
        texts = {name: f"{mean:.3f} ({len(found[name])})" for name, mean in means.items()}
        if not on_task("tiny", f"task:{task}", length).dmt.dynamics:  # DMT goes on without labels
            texts |= {m: f"{texts[m]}\\*" for m in texts if m.startswith("smt_unrolled")}
        same = {name: mean for name, mean in means.items() if name != "lstm"}
        if same and max(same.values()) > min(same.values()) + APART:
            bold = [name for name in same if same[name] > max(same.values()) - ALIKE]
            texts |= {name: f"**{texts[name]}**" for name in bold}
        if found:
            rows.append([task, length, *(texts.get(name) for name in GLANCE)])
    return table(["task", "L", *GLANCE.values()], rows)


def of_tasks(results: dict[str, Result]) -> Iterator[str]:
    """Yield who solves which task: a table to look at, one to look things up in."""
    best = best_cells(results.values())
    yield at_a_glance(best)
    rows = []
    for (task, length, seconds, name), (cells, tried) in best.items():
        rate = "" if name in (*OURS, "smt_finetune") else f", rate {cells[0]['rate']:g}"
        times = [cell["solved_after"] for cell in cells]
        steps = [sum(stage["steps"] for stage in cell["stages"].values()) for cell in cells]
        longer = [] if task == "keysvalues" else cells  # its strings grow with the length
        rows.append([
            task, length, f"{seconds:g} s",
            name.replace("_", " ") + (rate and f"{rate} ({tried} tried)"),
            over_seeds(steps, digits=0), figure("accuracy", cells),
            f"{sum(cell['accuracy'] >= SOLVED for cell in cells)} of {len(cells)}",
            None if None in times else f"{fmean(times):.0f} s",
            figure("teacher", cells), figure("told_ahead", cells),
            figure("one_step", cells) if name in CONTROLLED else None,
            figure("before_finetune", cells),
            figure("accuracy_4L", longer), figure("teacher_4L", longer),
        ])  # fmt: skip
    head = ["task", "L", "time", "method", "steps", "accuracy", "solved", "after", "teacher"]
    head += ["told ahead", "one step", "before BPTT", "at 4L", "teacher at 4L"]
    yield table(head, rows)


def of_method(results: dict[str, Result]) -> Iterator[str]:
    """Yield modes of DMT, text against length, and all measurements of BPTT."""
    found, seeds, named = method.figures(results), method.bits(results), method.by_setting(results)
    yield table(["mode", "bits", "drift (NMSE)"], [
        [mode.replace("_", " "), found[f"bits_{mode}"], found[f"drift_{mode}"]]
        for mode in ("before_dmt", *method.MODES)
    ])  # fmt: skip
    yield table(["", *LENGTHS.values()], [
        [f"L = {length}", *(over_seeds(seeds.get(f"{kind}_L{length}", [])) for kind in LENGTHS)]
        for length in method.SECONDS
    ])  # fmt: skip
    yield table(["measurement", "setting", "seeds", "bits", "steps"], [
        [name, ", ".join(part.replace("rate", "rate ").replace("visits", "visits ")
                         for part in chosen), len(made), figure("bits", made),
         round(fmean(result["steps"] for result in made))]
        for setting, made in named.items()
        for name, *chosen in [setting.split("-")] if name.startswith("bptt")
    ])  # fmt: skip


def of_pixels(results: dict[str, Result]) -> Iterator[str]:
    """Yield the bits per pixel of every method."""
    rows = []
    for setting, cells in method.by_setting(results).items():
        keys = ("bits", "teacher_bits", "told_ahead", "before_finetune", "drift")
        name = setting.replace("_", " ").replace("-rate", ", rate ")
        rows.append([name, len(cells), *(figure(key, cells) for key in keys)])
    head = ["method", "seeds", "bits per pixel", "teacher", "told ahead", "before BPTT"]
    yield table([*head, "drift (NMSE)"], rows)


def of_ablations(results: dict[str, Result]) -> Iterator[str]:
    """Yield what each part brings."""
    rows = []
    for change, cells in ablations.by_change(results).items():
        slots = over_seeds([value for cell in cells for value in cell.get("slots", ())])
        keys = ("teacher_bits", "bits", "drift")
        rows.append([change, *(figure(key, cells) for key in keys), slots])
    yield table(["change", "teacher", "RNN", "drift (NMSE)", "variance of slots"], rows)


TABLES = {
    "tasks": of_tasks,
    "method": of_method,
    "pixels": of_pixels,
    "digits_longer": of_pixels,
    "mnist": of_pixels,
    "ablations": of_ablations,
}


def main() -> int:
    """Print all tables."""
    for name, tables in TABLES.items():
        for markdown in tables(read(RESULTS / f"{name}.json")):
            print(f"{name}:\n\n{markdown}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
