"""Figures of a run: plain data in, a matplotlib `Figure` out, in one style.

Names of curves and bars are those of `summary.json` (`teacher_bits` -> `teacher`); `SERIES` says
how each is called and drawn, everywhere alike. No pyplot, so no global state.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

Values = Float[np.ndarray, " _"]
Curve = Values | Sequence[float | None]
Rows = Sequence[Mapping[str, Any]]

INK, MUTED, GRID = "#1f2933", "#66727f", "#dfe4ea"


class Series(NamedTuple):
    """How one model is called and drawn; dashes tell apart what colours may not."""

    label: str
    color: str
    dashes: Any = "-"
    width: float = 1.6


SERIES = {
    "order0": Series("order 0", "#9aa5b1", (0, (1, 1.5)), 1.2),
    "order1": Series("order 1", "#7b8794", (0, (4, 1.5)), 1.2),
    "order2": Series("order 2", "#52606d", "-", 1.2),
    "bptt": Series("BPTT", "#007f5f", (0, (6, 1.5, 1, 1.5))),
    "teacher": Series("teacher", "#c85200"),
    "rnn_before_dmt": Series("RNN before DMT", "#5b9bd5", (0, (3, 1.2))),
    "rnn_before_finetune": Series("RNN before fine-tuning", "#3a7fc4", (0, (6, 1.5))),
    "rnn": Series("RNN", "#0b5fa5", "-", 2.0),
}
"""Every model that a figure may show, references first."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 8.5,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
"""What all figures are drawn in."""
_WIDTH = 4.2  # inches: 9 pt stay readable on a phone, and two or three figures stand side by side


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width; `height` is in inches."""
    return Figure(figsize=(_WIDTH, height), layout="constrained")


@matplotlib.rc_context(STYLE)
def training_figure(rows: Rows, key: str, unit: str) -> Figure:
    """Plot one stage: loss over steps, and small below it the learning rate and gradient norm.

    Args:
        rows: the stage's rows of metrics.jsonl; of a step that was run twice, the last one counts.
        key: the training loss that compares with `validation/loss`.
        unit: the label of the loss axis.
    """
    small = {"learning rate": "optimizer/learning_rate", "gradient norm": "norm/gradient"}
    points = {title: _points(rows, name) for title, name in small.items()}
    shown = [title for title, (steps, _) in points.items() if len(steps)]
    figure = new_figure(3.2)
    mosaic: Any = [["loss"] * len(shown), shown] if shown else [["loss"]]
    axes = figure.subplot_mosaic(mosaic, height_ratios=[3, 1] if shown else None)
    for title in shown:
        steps, values = points[title]
        axes[title].plot(steps, values, color=MUTED, linewidth=1)
        peak = max(values.max(), 1e-12)
        axes[title].set(title=title, xlabel="step", ylim=(0, 1.1 * peak), yticks=[0, peak])
        axes[title].yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
        axes[title].locator_params(axis="x", nbins=2)
    loss = axes["loss"]
    training, validation = _points(rows, key), _points(rows, "validation/loss")
    loss.plot(*training, color=SERIES["order1"].color, linewidth=1.2, label="training")
    loss.plot(*validation, color=SERIES["rnn"].color, marker="o", markersize=3.5,
              label="validation")  # fmt: skip
    values = np.concatenate([training[1], validation[1]])
    if len(values) and 0 < 8 * values.min() < values.max():
        _log_axis(loss)
    loss.set_ylabel(unit)
    loss.legend(loc="upper right")
    return figure


@matplotlib.rc_context(STYLE)
def drift_figure(rows: Rows) -> Figure:
    """Plot how far the RNN's own memories are from the labels, over DMT's steps."""
    figure = new_figure(3.1)
    axes = figure.subplots()
    lines = {"drift/rollout": ("rollout", "rnn"), "drift/staleness": ("staleness", "order1")}
    for key, (label, series) in lines.items():
        steps, values = _points(rows, key)
        if len(steps):
            axes.plot(steps, values, color=SERIES[series].color, marker="o", markersize=3.5,
                      label=label)  # fmt: skip
    axes.set(xlabel="step", ylabel="NMSE")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    return figure


@matplotlib.rc_context(STYLE)
def curves_figure(
    curves: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    log_x: bool = True,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
) -> Figure:
    """Plot named curves against position 1, 2, ..., labelled at their ends; NaN is no value.

    On a logarithmic axis late positions are averaged in bins of equal width on it, which takes out
    their noise.

    Args:
        curves: values by position, for names of `SERIES`.
        x: what a position is.
        y: what the values are.
        log_x: whether the axis of positions is logarithmic.
        log_y: whether the axis of values is.
        mark: a position and the name of the vertical line there.
    """
    assert curves.keys() <= SERIES.keys(), f"{list(curves)}: names must be in SERIES"
    figure = new_figure(3.1)
    axes = figure.subplots()
    ends: list[tuple[float, Series]] = []
    first, last = math.inf, 1.0
    for name, series in SERIES.items():
        if name in curves:
            place, values = _binned(np.asarray(curves[name], float), octaves=log_x)
            few = "o" if len(values) <= 12 else ""
            axes.plot(place, values, color=series.color, linestyle=series.dashes,
                      linewidth=series.width, marker=few, markersize=3.5)  # fmt: skip
            ends.append((float(values[-1]), series))
            first, last = min(first, place[0]), max(last, len(curves[name]))
    axes.set(xlim=(first, max(last, first + 1)), xlabel=x, ylabel=y)
    if log_x:
        axes.set_xscale("log")
        octaves = math.floor(math.log2(last / first))
        ticks = [first * 2**n for n in range(0, octaves + 1, 1 + octaves // 9)]
        axes.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    if log_y:
        _log_axis(axes)
    if mark:
        axes.axvline(mark[0], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.annotate(mark[1], (mark[0], 1), xycoords=("data", "axes fraction"), xytext=(-3, -2),
                      textcoords="offset points", ha="right", va="top", color=MUTED)  # fmt: skip
    _label_ends(axes, ends)
    return figure


@matplotlib.rc_context(STYLE)
def bars_figure(values: Mapping[str, float], *, x: str) -> Figure:
    """Plot one horizontal bar for each named value, in the order of `SERIES`, with its number."""
    figure = new_figure(0.9 + 0.32 * len(values))
    axes = figure.subplots()
    names = [name for name in SERIES if name in values]
    bars = axes.barh(
        [SERIES[name].label for name in names],
        [values[name] for name in names],
        color=[SERIES[name].color for name in names],
        height=0.68,
    )
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.set_xlabel(x, loc="left")
    axes.margins(x=0.14)
    return figure


def _points(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the finite values of one metric."""
    found = {row["step"]: row[key] for row in rows if math.isfinite(row.get(key, math.nan))}
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps])


def _binned(values: Values, *, octaves: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of values, and the values; NaN is left out.

    With `octaves` they are means over bins: one position each at first, 12 bins an octave later.
    """
    there = np.isfinite(values)
    edges = np.arange(1, len(values) + 2)
    if octaves:
        bins = 1 + math.ceil(12 * math.log2(len(values) + 1))
        edges = np.unique(np.geomspace(1, len(values) + 1, bins).astype(int))
    sizes = np.add.reduceat(there.astype(int), edges[:-1] - 1)
    sums = np.add.reduceat(np.where(there, values, 0), edges[:-1] - 1)
    place = (edges[:-1] + edges[1:] - 1) / 2
    return place[sizes > 0], sums[sizes > 0] / sizes[sizes > 0]


def _log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5 of a decade, if few at 1."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 1000 * low else (1,)
    axes.yaxis.set(major_locator=LogLocator(subs=subs, numticks=9), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, Series]]) -> None:
    """Write each label right of the axes, as high as its curve ends, apart from the others."""
    axes.get_ylim()  # settles the limits, which `transData` needs
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = sorted((to_axes.transform((1, value))[1], series) for value, series in ends)
    heights = np.array([height for height, _ in wanted])
    for _ in range(50):  # let neighbours push each other away
        push = np.maximum(0, 0.075 - np.diff(heights)) / 2
        heights[:-1] -= push
        heights[1:] += push
    for height, (_, series) in zip(heights, wanted, strict=True):
        axes.text(1.03, height, series.label, color=series.color, va="center",
                  transform=axes.transAxes)  # fmt: skip
