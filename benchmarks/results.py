"""`docs/results.md` from the measurements under `docs/results/`: tables, figures, their commands.

python -m benchmarks.results
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from benchmarks import ablations, method, pixels
from benchmarks.cells import FINETUNE
from benchmarks.page import DOCS, draw, seeds, spread, spread_of, table
from benchmarks.pool import Result
from benchmarks.task_results import of_tasks

TEMPLATE = Path(__file__).with_suffix(".md.j2")


def read(directory: Path) -> dict[str, Result]:
    """Return the results of a directory by name; none if there is no such directory."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))}


def of_method(results: dict[str, Result]) -> dict[str, Any]:
    """Return encoders, modes of DMT, and text against length."""
    found = method.figures(results)
    modes = [
        [mode.replace("_", " "), found[f"bits_{mode}"], found[f"drift_{mode}"]]
        for mode in ("before_dmt", *method.MODES)
    ]
    by_seed = method.bits(results)
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
        [
            f"L = {length}",
            *(
                spread(by_seed[name]) if (name := f"{kind}_L{length}") in by_seed else None
                for kind in kinds
            ),
        ]
        for length in lengths
    ]
    drawn = all(f"bptt_bits_L{length}" in found for length in lengths)
    if drawn:  # the full run: in the quick one times differ, and BPTT is not at all lengths
        curves = {
            kind: [(n, found[key]) for n in lengths if (key := f"{kind}_bits_L{n}") in found]
            for kind in ("bptt", "bptt_parallel", "smt", "smt_unrolled")
        }
        draw("lengths", {"text": curves}, "L", "bits per byte", xticks=lengths)
    rates: list[list[object]] = []
    by_name = method.by_setting(results)
    for setting, seeds_made in by_name.items():
        name, *chosen = setting.split("-")
        if name.startswith("bptt"):
            steps = round(fmean(result["steps"] for result in seeds_made))
            made = spread([result["bits"] for result in seeds_made])
            rates.append([name, _words(chosen), len(seeds_made), made, steps])
    return {
        "figures": found,
        "drawn": drawn,
        "bits": lambda setting, figure="bits": spread_of(figure, by_name[setting]),
        "modes": table(["mode", "bits", "drift (NMSE)"], modes),
        "speeds": ", ".join(
            f"{'not reached' if value is None else f'{value:.2f}'} at L = {length}"
            for length, value in speeds.items()
        ),
        "lengths": table(["", *kinds.values()], by_length),
        "rates": table(["measurement", "setting", "seeds", "bits", "steps"], rates),
    }


def _words(settings: Sequence[str]) -> str:
    """Return settings as they stand in a file's name, rate0.004, as words: rate 0.004."""
    return ", ".join(re.sub(r"(?<=[a-z])(?=\d)", " ", setting) for setting in settings)


def of_pixels(results: dict[str, Result]) -> dict[str, Any]:
    """Return bits per pixel of every method and rate."""
    groups: dict[str, list[Result]] = {}
    for name, result in results.items():
        groups.setdefault(name.rpartition("-seed")[0], []).append(result)
    rows: list[list[object]] = []
    for name, cells in groups.items():
        keys = ("bits", "teacher_bits", "told_ahead", "before_finetune", "drift")
        figures = [spread_of(key, cells) for key in keys]
        rows.append([name.replace("_", " ").replace("-rate", ", rate "), len(cells), *figures])
    found = pixels.figures(results)
    used = max(sum(result["seconds"].values()) for result in results.values())
    scale = round(used / pixels.SECONDS)
    head = ["method", "seeds", "bits per pixel", "teacher", "told ahead"]
    head += ["before BPTT", "drift (NMSE)"]
    return {
        "table": table(head, rows),
        "mean": lambda figure: f"{found[figure]:.3f}",
        "seeds": seeds(results),
        "seconds": f"{pixels.SECONDS * scale:g}",
        "scale": scale,
        "share": 1 - FINETUNE,
    }


def of_ablations(results: dict[str, Result]) -> dict[str, Any]:
    """Return what each part brings."""
    rows = [
        [
            change,
            *(spread_of(figure, cells) for figure in ("teacher_bits", "bits", "drift")),
            spread([value for cell in cells for value in cell.get("slots", ())]),
        ]
        for change, cells in ablations.by_change(results).items()
    ]
    head = ["change", "teacher", "RNN", "drift (NMSE)", "variance of slots"]
    scale = next(iter(results.values()))["limit"] / ablations.SECONDS
    return {
        "table": table(head, rows),
        "seeds": seeds(results),
        "scale": f"{scale:g}",
        "seconds": f"{scale * ablations.SECONDS:g}",
    }


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
