"""Figures of a scaling study: throughput over workers, losses over sizes, costs over tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from smt_ray.report.plots import MUTED, SERIES, STYLE, new_figure

Rows = Sequence[Mapping[str, Any]]
Law = Callable[[Float[np.ndarray, " N"]], Float[np.ndarray, " N"]]

STAGES = {
    "teacher": SERIES["teacher"].color,
    "labels": SERIES["bptt"].color,
    "transition": SERIES["rnn_before_dmt"].color,
    "dmt": SERIES["rnn"].color,
    "finetune": SERIES["order2"].color,
    "bptt": SERIES["order1"].color,
}
"""Colours of the stages."""
SHARES = {
    "compute": SERIES["rnn"].color,
    "data": SERIES["bptt"].color,
    "collectives": SERIES["teacher"].color,
    "checkpoint": SERIES["order1"].color,
}
"""Colours of the parts of a step."""


@matplotlib.rc_context(STYLE)
def efficiency_figure(rows: Rows) -> Figure:
    """Plot efficiency over workers or gangs: weak scaling whole, strong scaling dashed."""
    figure = new_figure(3.1)
    axes = figure.subplots()
    for stage, color in STAGES.items():
        for scaling, dashes in {"weak": "-", "strong": (0, (4, 2))}.items():
            points = sorted(
                (row["count"], row["efficiency"])
                for row in rows
                if row["stage"] == stage and row["scaling"] in {"base", scaling}
            )
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), color=color, linestyle=dashes, marker="o",
                          markersize=3.5, label=f"{stage}, {scaling}")  # fmt: skip
    counts = sorted({row["count"] for row in rows})
    _doublings(axes, counts)
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set(xlabel="workers (labels: gangs)", ylabel="efficiency")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left", fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def shares_figure(rows: Rows) -> Figure:
    """Plot what a step's time goes to, one bar a measurement of training."""
    shown = [row for row in rows if row["share_compute"] is not None]
    figure = new_figure(1.0 + 0.28 * len(shown))
    axes = figure.subplots()
    names = [f"{row['stage']}, {row['count']} {row['scaling']}" for row in shown]
    left = np.zeros(len(shown))
    for share, color in SHARES.items():
        widths = np.array([row[f"share_{share}"] for row in shown])
        axes.barh(names, widths, left=left, color=color, height=0.7, label=share)
        left += widths
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the time")
    axes.grid(visible=False)
    figure.legend(loc="outside upper left", ncols=4, fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def losses_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Law | None]], *, x: str, y: str
) -> Figure:
    """Plot losses over a size, for names of `SERIES`, and the laws through them.

    Args:
        curves: sizes, losses, and a law if one was fitted.
        x: what the sizes are.
        y: what the losses are.
    """
    figure = new_figure(3.1)
    axes = figure.subplots()
    for name, (sizes, losses, law) in curves.items():
        series = SERIES[name]
        axes.plot(sizes, losses, color=series.color, marker="o", markersize=4, linestyle="none",
                  label=series.label)  # fmt: skip
        if law is not None:
            there = np.geomspace(min(sizes), max(sizes), 50)
            axes.plot(there, law(there), color=series.color, linestyle=series.dashes)
    axes.set_xscale("log")
    _few_ticks(axes)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(loc="best", fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def compression_figure(rows: Rows, *, unit: str) -> Figure:
    """Plot, for each target loss, the smallest memory that reached it for so many FLOPs."""
    figure = new_figure(3.1)
    axes = figure.subplots()
    last = max(row["flops"] for row in rows)
    colors = [SERIES[name].color for name in ("rnn", "rnn_before_dmt", "order0")]
    for number, target in enumerate(sorted({row["target_bits"] for row in rows})):
        points = [(row["flops"], row["memory"]) for row in rows if row["target_bits"] == target]
        flops, memory = zip(*sorted(points), strict=True)
        axes.step([*flops, 1.3 * last], [*memory, memory[-1]], where="post", marker="o",
                  markersize=4, markevery=slice(0, len(flops)),
                  color=colors[number % len(colors)], label=f"{target:.3f} {unit}")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    _few_ticks(axes)
    axes.set(xlabel="FLOPs of training", ylabel="memory K * D")
    axes.legend(loc="best", fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def cost_figure(rows: Rows, key: str, *, y: str) -> Figure:
    """Plot a cost over tokens, one line a stage and one for all."""
    figure = new_figure(3.1)
    axes = figure.subplots()
    for stage, color in {**STAGES, "all": SERIES["order2"].color}.items():
        points = sorted((row["tokens"], row[key]) for row in rows if row["stage"] == stage)
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3.5,
                      label=stage, linewidth=2 if stage == "all" else 1.4)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="tokens of the source", ylabel=y)
    axes.legend(loc="best", fontsize=8)
    return figure


def _doublings(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set(major_locator=FixedLocator(counts), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))


def _few_ticks(axes: Axes) -> None:
    """Label 1, 2 and 5 of a decade where there are few decades, round numbers within one."""
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 30 * low else (1,)
    locator = MaxNLocator(4) if high < 4 * low else LogLocator(subs=subs, numticks=9)
    axes.xaxis.set(major_locator=locator, minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
