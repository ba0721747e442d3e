"""Pieces of `docs/results.md`: Markdown tables, spreads over seeds, panels of curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context

from benchmarks.pool import Result
from smt_ray.report.plots import SERIES, STYLE, new_figure

DOCS = Path(__file__).parents[1] / "docs"
CURVES = {
    "bptt": SERIES["bptt"],
    "bptt_curriculum": SERIES["bptt"]._replace(label="BPTT, short first", dashes=(0, (6, 2))),
    "bptt_parallel": SERIES["bptt"]._replace(label="BPTT in parallel", dashes=(0, (1, 1.5))),
    "teacher": SERIES["teacher"],
    "smt": SERIES["rnn_before_dmt"]._replace(label="SMT, one-step gradients"),
    "smt_unrolled": SERIES["rnn"]._replace(label="SMT, DMT unrolled"),
    "smt_unrolled_curriculum": SERIES["rnn"]._replace(
        label="the same, short first", dashes=(0, (6, 2))
    ),
}
"""How each method is drawn."""
FEW = 10
"""Curves with fewer points than this mark each one."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; numbers have three digits after the point."""

    def text(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = [head, ["---"] * len(head), *([text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: Sequence[float], digits: int = 3) -> str | None:
    """Return the mean, and least and greatest where there are several; None of none."""
    if not values:
        return None
    mean, *ends = (f"{value:,.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({ends[0]} to {ends[1]})"


def spread_of(figure: str, cells: Sequence[Result]) -> str | None:
    """Return the spread of a figure over the cells that have it, if there are such."""
    values = [cell[figure] for cell in cells if cell.get(figure) is not None]
    return spread(values)


def seeds(results: dict[str, Result]) -> int:
    """Return how many seeds the results are of."""
    return len({name.rpartition("-seed")[2] for name in results})


def draw(
    name: str,
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    x_label: str,
    y_label: str,
    **axes_settings: Any,
) -> None:
    """Draw a panel for each group of curves, to `docs/results/NAME.png`."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = new_figure(2.2 * rows + 0.6)
        figure.set_figwidth(max(4.2, 2.8 * columns))
        handles = {}
        for place, (title, curves) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, place, title=title)
            for key, curve in curves.items():
                if curve:
                    series, (x, y) = CURVES[key], zip(*curve, strict=True)
                    style = {"color": series.color, "linestyle": series.dashes}
                    marker = "o" if len(x) < FEW else ""
                    (line,) = axes.plot(
                        x, y, label=series.label, linewidth=series.width, marker=marker,
                        markersize=3, **style,
                    )  # fmt: skip
                    handles[key] = line
            axes.set(**axes_settings)
        shown = [handles[key] for key in CURVES if key in handles]
        figure.legend(
            handles=shown, loc="outside upper center", ncols=max(2, columns), frameon=False
        )
        figure.supxlabel(x_label)
        figure.supylabel(y_label)
        figure.savefig(DOCS / "results" / f"{name}.png", dpi=120, facecolor="white")
