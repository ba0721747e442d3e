"""`docs/results.md` from the measurements under `docs/results/`: tables, figures, their commands.

python -m benchmarks.results
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from matplotlib import rc_context

from benchmarks import ablations, method, pixels
from benchmarks.cells import FINETUNE, OURS, SOLVED
from benchmarks.pool import Result
from smt_ray.evaluation.plots import SERIES, STYLE, new_figure

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATE = Path(__file__).with_suffix(".md.j2")


def read(directory: Path) -> dict[str, Result]:
    """Return the results of a directory by name; none if there is no such directory."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; numbers have three digits after the point."""

    def text(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = [head, ["---"] * len(head), *([text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Return the mean, and least and greatest where there are several."""
    mean = f"{fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def of_tasks(results: dict[str, Result]) -> dict[str, Any]:
    """Return who solves which task."""
    groups: dict[tuple[str, int, float, str], dict[float, list[Result]]] = {}
    for cell in results.values():
        key = (cell["task"], cell["length"], cell["seconds"], cell["method"])
        groups.setdefault(key, {}).setdefault(cell["rate"], []).append(cell)
    rows = []
    for (task, length, seconds, method_name), rates in sorted(groups.items()):
        rate, cells = min(rates.items(), key=lambda tried: _bits_of_first_seed(tried[1]))
        accuracy = [cell["accuracy"] for cell in cells]
        times = [cell["solved_after"] for cell in cells]
        ours = method_name in OURS
        smt = groups.get((task, length, seconds, "smt"))
        chosen = "" if ours else f", rate {rate:g} ({len(rates)} tried)"
        rows.append(
            [
                task,
                length,
                f"{seconds:g} s",
                method_name.replace("_", " ") + chosen,
                spread(accuracy),
                f"{sum(value >= SOLVED for value in accuracy)} of {len(cells)}",
                None if None in times else f"{fmean(times):.0f} s",
                _spread_of("teacher", cells),
                _spread_of("told_ahead", cells),
                _spread_of("one_step", cells) if method_name == "smt" else None,
                spread([cell["accuracy_4L"] for cell in cells]),
                _spread_of("teacher_4L", cells),
                None if ours else _at_equal_tokens(cells, smt),
            ]
        )
    head = ["task", "L", "time", "method", "accuracy", "solved"]
    head += ["after", "teacher", "told ahead", "one step", "at 4L", "teacher at 4L"]
    head += ["at equal tokens"]
    draw("tasks", _task_curves(results), ylim=(0, 1.02))
    return {
        "table": table(head, rows),
        "share": 1 - FINETUNE,
        "seeds": seeds(results),
    }


def _spread_of(figure: str, cells: Sequence[Result]) -> str | None:
    """Return the spread of a figure over the cells that have it, if there are such."""
    values = [cell[figure] for cell in cells if cell.get(figure) is not None]
    return spread(values) if values else None


def _bits_of_first_seed(cells: Sequence[Result]) -> float:
    return next((cell["bits"] for cell in cells if cell["seed"] == 0), float("inf"))


def _at_equal_tokens(
    cells: Sequence[Result], ours: Mapping[float, Sequence[Result]] | None
) -> str | None:
    """Return the last scores on validation before a cell had read more sequences than SMT had."""
    if ours is None:
        return None
    stages = [cell["stages"] for same in ours.values() for cell in same]
    tokens = fmean(made["teacher"]["tokens"] + made["labels"]["tokens"] for made in stages)
    scores = []
    for cell in cells:
        seconds = cell["used"] * tokens / cell["tokens"]
        before = [score for at, score in cell["scores"]["bptt"] if at <= seconds]
        scores.append(before[-1] if before else 0.0)
    return spread(scores)


def _task_curves(results: dict[str, Result]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the scores on the way of the first seed: SMT's after those of its teacher."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for cell in results.values():
        if cell["seed"] or cell["method"] not in {"smt", "bptt"}:
            continue
        title = f"{cell['task']}, L = {cell['length']}, {cell['seconds']:g} s"
        curves = panels.setdefault(title, {})
        if cell["method"] == "smt":
            before = sum(s["seconds"] for name, s in cell["stages"].items() if name != "dmt")
            curves["teacher"] = cell["scores"]["teacher"]
            curves["rnn"] = [(before + at, score) for at, score in cell["scores"]["dmt"]]
        else:
            better = max(curves.get("bptt", []), cell["scores"]["bptt"], key=_last)
            curves["bptt"] = better
    return panels


def _last(curve: Sequence[Sequence[float]]) -> float:
    return curve[-1][1] if curve else float("-inf")


def of_method(results: dict[str, Result]) -> dict[str, Any]:
    """Return encoders, modes of DMT, and text against length."""
    found = method.figures(results)
    modes = [
        [mode.replace("_", " "), found[f"bits_{mode}"], found[f"drift_{mode}"]]
        for mode in ("before_dmt", *method.MODES)
    ]
    lengths = sorted(int(name.rpartition("_L")[2]) for name in found if "smt_bits" in name)
    speeds = {
        length: found[key] for length in lengths if (key := f"dmt_speedup_L{length}") in found
    }
    kinds = {
        "smt": "SMT and DMT",
        "smt_unrolled": "DMT unrolled",
        "bptt": "BPTT",
        "bptt_truncated": "BPTT, cut every 64",
        "bptt_parallel": "BPTT in parallel",
    }
    by_length = [
        [f"L = {length}", *(found.get(f"{kind}_bits_L{length}") for kind in kinds)]
        for length in lengths
    ]
    drawn = all(f"bptt_bits_L{length}" in found for length in lengths)
    if drawn:  # the full run: in the quick one times differ, and BPTT is not at all lengths
        curves = {
            key: [(length, found[f"{kind}_bits_L{length}"]) for length in lengths]
            for key, kind in {"rnn": "smt", "bptt": "bptt"}.items()
        }
        draw("lengths", {"bits per byte against L": curves}, xticks=lengths)
    rates = [
        [name.rpartition("-")[0], f"{result['rate']:g}", result["bits"], result["steps"]]
        for name, result in results.items()
        if name.startswith("bptt")
    ]
    return {
        "figures": found,
        "drawn": drawn,
        "modes": table(["mode", "bits", "drift (NMSE)"], modes),
        "speeds": ", ".join(
            f"{'not reached' if value is None else f'{value:.2f}'} at L = {length}"
            for length, value in speeds.items()
        ),
        "lengths": table(["", *kinds.values()], by_length),
        "rates": table(["measurement", "rate", "bits", "steps"], rates),
    }


def of_pixels(results: dict[str, Result]) -> dict[str, Any]:
    """Return bits per pixel of every method and rate."""
    groups: dict[str, list[Result]] = {}
    for name, result in results.items():
        groups.setdefault(name.rpartition("-seed")[0], []).append(result)
    rows: list[list[object]] = []
    for name, cells in groups.items():
        keys = ("bits", "teacher_bits", "told_ahead", "before_finetune", "drift")
        figures = [_spread_of(key, cells) for key in keys]
        rows.append([name.replace("_", " ").replace("-rate", ", rate "), len(cells), *figures])
    used = max(sum(result["seconds"].values()) for result in results.values())
    scale = round(used / pixels.SECONDS)
    head = ["method", "seeds", "bits per pixel", "teacher", "told ahead"]
    head += ["before BPTT", "drift (NMSE)"]
    return {
        "table": table(head, rows),
        "seeds": seeds(results),
        "seconds": f"{pixels.SECONDS * scale:g}",
        "scale": scale,
        "share": 1 - FINETUNE,
    }


def of_ablations(results: dict[str, Result]) -> dict[str, Any]:
    """Return what each part brings."""
    rows = [
        [change, *(_spread_of(figure, cells) for figure in ("teacher_bits", "bits", "drift"))]
        for change, cells in ablations.by_change(results).items()
    ]
    head = ["change", "teacher", "RNN", "drift (NMSE)"]
    scale = next(iter(results.values()))["limit"] / ablations.SECONDS
    return {"table": table(head, rows), "seeds": seeds(results), "scale": f"{scale:g}"}


def seeds(results: dict[str, Result]) -> int:
    """Return how many seeds the results are of."""
    return len({name.rpartition("-seed")[2] for name in results})


def draw(
    name: str, panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], **axes_settings: Any
) -> None:
    """Draw a panel for each group of curves, to `docs/results/NAME.png`."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = new_figure(2.2 * rows)
        figure.set_figwidth(max(4.2, 2.8 * columns))
        for place, (title, curves) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, place, title=title)
            for key, curve in curves.items():
                if curve:
                    series, (x, y) = SERIES[key], zip(*curve, strict=True)
                    style = {"color": series.color, "linestyle": series.dashes}
                    axes.plot(x, y, label=series.label, linewidth=series.width, **style)
            axes.set(**axes_settings)
            if place == 1:
                axes.legend(frameon=False)
        figure.savefig(DOCS / "results" / f"{name}.png", dpi=120, facecolor="white")


PARTS: dict[str, Callable[[dict[str, Result]], dict[str, Any]]] = {
    "tasks": of_tasks,
    "method": of_method,
    "pixels": of_pixels,
    "digits_longer": of_pixels,
    "mnist": of_pixels,
    "ablations": of_ablations,
}


def main() -> int:
    """Write the page."""
    found = {name: read(DOCS / "results" / name) for name in PARTS}
    parts = {name: PARTS[name](results) if results else None for name, results in found.items()}
    template = jinja2.Environment(
        autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text())
    (DOCS / "results.md").write_text(template.render(parts) + "\n")
    print(DOCS / "results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
