"""Figures of a sweep: a score over the fields that were swept."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from smt_ray.report.plots import INK, MUTED, STYLE, new_figure

Points = Sequence[tuple[Mapping[str, Any], float]]
"""The swept fields of each scored trial, and its score."""

SCALE: Colormap = LinearSegmentedColormap.from_list("scores", ["#0b3f70", "#4f94cd", "#e6eef5"])
"""From the best score to the worst."""
_DARK = 0.55  # of the scale: below it a cell's number is white
_OCTAVES = 3.0  # a field of numbers that spans more has a logarithmic axis


@matplotlib.rc_context(STYLE)
def heat_figure(points: Points, x: str, y: str, score: str, *, higher: bool) -> Figure:
    """Plot the best score for each value of `x` and of `y`; a pair without one stays empty."""
    across, up = (values_of(points, name) for name in (x, y))
    grid = np.full((len(up), len(across)), np.nan)
    for fields, value in points:
        cell = up.index(fields[y]), across.index(fields[x])
        other = grid[cell]
        grid[cell] = value if np.isnan(other) else (max if higher else min)(other, value)
    figure = new_figure(1.1 + 0.45 * len(up))
    axes = figure.subplots()
    shades = _Shades(grid[np.isfinite(grid)], higher)
    axes.pcolormesh(np.ma.masked_invalid(grid), cmap=shades.cmap, norm=shades.norm)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = "#ffffff" if shades.rank(value) < _DARK else "#12161b"
            axes.text(column + 0.5, row + 0.5, f"{value:#.4g}", color=color, ha="center",
                      va="center")  # fmt: skip
    axes.set(xlabel=x, ylabel=y, title=score)
    axes.set_xticks(np.arange(len(across)) + 0.5, map(_short, across))
    axes.set_yticks(np.arange(len(up)) + 0.5, map(_short, up))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    return figure


@matplotlib.rc_context(STYLE)
def scatter_figure(points: Points, x: str, y: str, score: str, *, higher: bool) -> Figure:
    """Plot each trial at its values of `x` and `y`, the darker the better; a score as `y` too."""
    figure = new_figure(3.1)
    axes = figure.subplots()
    scores = np.array([value for _, value in points])
    across = [fields[x] for fields, _ in points]
    up = list(scores) if y == score else [fields[y] for fields, _ in points]
    shades = _Shades(scores, higher)
    axes.scatter(_ticks(axes, "x", across), _ticks(axes, "y", up), c=scores, cmap=shades.cmap,
                 norm=shades.norm, s=42, edgecolors=MUTED, linewidths=0.6)  # fmt: skip
    axes.set(xlabel=x, ylabel=y, title="" if y == score else score)
    return figure


@matplotlib.rc_context(STYLE)
def parallel_figure(points: Points, score: str, *, higher: bool) -> Figure:
    """Plot each trial as a line over one axis a field, the score's last; the best is darkest."""
    names = list(points[0][0])
    figure = new_figure(3.3)
    axes = figure.subplots()
    scores = np.array([value for _, value in points])
    shades = _Shades(scores, higher)
    heights = []
    for place, name in enumerate(names):
        raw = [fields[name] for fields, _ in points]
        at, marks = _heights(raw)
        heights.append(at)
        _axis(axes, place, marks)
    low, high = scores.min(), scores.max()
    span = high - low or 1.0
    heights.append((scores - low) / span if high > low else np.full(len(scores), 0.5))
    _axis(axes, len(names), [(float((v - low) / span) if high > low else 0.5, f"{v:.4g}")
                             for v in dict.fromkeys((low, high))])  # fmt: skip
    lines = np.stack(heights, axis=1)
    for at in np.argsort(shades.rank(scores))[::-1]:  # the best on top
        axes.plot(range(len(names) + 1), lines[at], color=shades.color(scores[at]), linewidth=1.6)
    labels = [name.replace(".", ".\n") for name in names]
    axes.set_xticks(range(len(names) + 1), [*labels, score])
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(names) + 0.35))
    axes.tick_params(axis="x", labelsize=7.5)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    return figure


def values_of(points: Points, name: str) -> list[Any]:
    """Return the distinct values of a field: numbers by size, others as they came."""
    found = list(dict.fromkeys(fields[name] for fields, _ in points))
    return sorted(found) if all(map(_is_number, found)) else found


class _Shades:
    """The colour of a score, the darker the better."""

    def __init__(self, scores: np.ndarray, higher: bool) -> None:
        low, high = float(scores.min()), float(scores.max())
        self.norm = Normalize(low, high) if low < high else Normalize(low - 1, high + 1)
        self.cmap, self.higher = (SCALE.reversed() if higher else SCALE), higher

    def color(self, score: float) -> Any:
        return self.cmap(self.norm(score))

    def rank(self, scores: Any) -> Any:
        """Return where scores lie from the best at 0 to the worst at 1."""
        at = self.norm(scores)
        return 1 - at if self.higher else at


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_log(values: Sequence[Any]) -> bool:
    return min(values) > 0 and max(values) >= 2**_OCTAVES * min(values)


def _heights(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Return where in 0..1 each value lies, and the (place, name) of marks."""
    found = list(dict.fromkeys(values))
    if not all(map(_is_number, found)):
        places = np.linspace(0, 1, len(found)) if found[1:] else np.array([0.5])
        at = dict(zip(found, places.tolist(), strict=True))
        return np.array([at[value] for value in values]), [(at[v], _short(v)) for v in found]
    found = sorted(found)
    if not found[1:]:
        return np.full(len(values), 0.5), [(0.5, _short(found[0]))]
    norm = (LogNorm if _is_log(found) else Normalize)(found[0], found[-1])
    marked = found if len(found) <= 6 else [found[0], found[-1]]
    return np.asarray(norm(np.array(values, float))), [(float(norm(v)), _short(v)) for v in marked]


def _axis(axes: Axes, place: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, color=MUTED, linewidth=0.8)
    for height, name in marks:
        axes.text(place + 0.04, height + 0.01, name, fontsize=7.5, va="bottom", color=INK)


def _ticks(axes: Axes, side: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return values to plot, and make the axis one of their kind."""
    if not all(map(_is_number, values)):
        return [_short(value) for value in values]
    if _is_log(values):
        (axes.set_xscale if side == "x" else axes.set_yscale)("log")
        axis = axes.xaxis if side == "x" else axes.yaxis
        wide = max(values) > 100 * min(values)
        axis.set(
            major_locator=LogLocator(subs=(1,) if wide else (1, 2, 5)), minor_locator=NullLocator()
        )
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return values


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
