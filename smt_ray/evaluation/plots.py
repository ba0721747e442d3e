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

Curve = Float[np.ndarray, " _"]
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
    "rnn": Series("RNN", "#0b5fa5", "-", 2.0),
}
"""Every model that a figure may show, references first."""

_STYLE: dict[Any, Any] = {
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
_WIDTH = 4.2  # inches: 9 pt stay readable on a phone, and two or three figures stand side by side


def _figure(height: float) -> Figure:
    return Figure(figsize=(_WIDTH, height), layout="constrained")


@matplotlib.rc_context(_STYLE)
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
    figure = _figure(3.2)
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


@matplotlib.rc_context(_STYLE)
def curves_figure(curves: Mapping[str, Curve], *, x: str, y: str, log_y: bool = False) -> Figure:
    """Plot named curves against position 1, 2, ... on a logarithmic axis, labelled at their ends.

    Late positions are averaged in bins of equal width on that axis, which takes out their noise.
    """
    assert curves.keys() <= SERIES.keys(), f"{list(curves)}: names must be in SERIES"
    figure = _figure(3.1)
    axes = figure.subplots()
    ends: list[tuple[float, Series]] = []
    for name, series in SERIES.items():
        if name in curves:
            place, values = _binned(np.asarray(curves[name], float))
            axes.plot(place, values, color=series.color, linestyle=series.dashes,
                      linewidth=series.width)  # fmt: skip
            ends.append((float(values[-1]), series))
    longest = max(map(len, curves.values()))
    axes.set_xscale("log")
    axes.set(xlim=(1, max(longest, 2)), xlabel=x, ylabel=y)
    octaves = math.floor(math.log2(longest))
    ticks = [2**n for n in range(0, octaves + 1, 1 + octaves // 9)]
    axes.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    if log_y:
        _log_axis(axes)
    _label_ends(axes, ends)
    return figure


@matplotlib.rc_context(_STYLE)
def bars_figure(values: Mapping[str, float], *, x: str) -> Figure:
    """Plot one horizontal bar for each named value, in the order of `SERIES`, with its number."""
    figure = _figure(0.9 + 0.32 * len(values))
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


def _binned(values: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and means over bins: one position each at first, 12 bins an octave later."""
    octaves = math.log2(len(values) + 1)
    edges = np.unique(np.geomspace(1, len(values) + 1, 1 + math.ceil(12 * octaves)).astype(int))
    sizes = np.diff(edges)
    place = (edges[:-1] + edges[1:] - 1) / 2
    return place, np.add.reduceat(values, edges[:-1] - 1) / sizes


def _log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5 of a decade."""
    axes.set_yscale("log")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
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
