"""Figures that are looked at rather than read: planes of memories, grids of images.

Shapes: N images of H x W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smt_ray.report.plots import SERIES, STYLE, new_figure

Points = Mapping[str, Sequence[float]]

COLUMNS = 8
"""Images side by side."""
_GAP = 1  # pixels between images


@matplotlib.rc_context(STYLE)
def geometry_figure(geometry: Mapping[str, Points]) -> Figure:
    """Plot the memories of each model as points (`x`, `y`) of one plane, coloured by `state`."""
    figure = new_figure(2.6)
    names = [name for name in SERIES if name in geometry]
    found = {state for name in names for state in geometry[name]["state"]}
    shades = matplotlib.colormaps["turbo"](np.linspace(0.08, 0.92, len(found)))
    colors = dict(zip(sorted(found), shades, strict=True))
    panes = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panes, names, strict=True):
        points = geometry[name]
        axes.scatter(
            points["x"],
            points["y"],
            s=7,
            linewidths=0,
            alpha=0.85,
            color=[colors[state] for state in points["state"]],
        )
        axes.set(title=SERIES[name].label, xticks=[], yticks=[], xlabel="component 1")
        axes.grid(visible=False)
    panes[0].set_ylabel("component 2")
    return figure


@matplotlib.rc_context(STYLE)
def images_figure(images: Mapping[str, Any]) -> Figure:
    """Plot samples above prompts, completions and truth, each a row or more of `COLUMNS` images.

    Args:
        images: (N, H, W) levels by the names `samples`, `prompts`, `completions`, `truth`, and
            `levels`, the number of them. A negative level stays empty.
    """
    titles = {
        "samples": "drawn from nothing",
        "prompts": "first half of a validation image",
        "completions": "completed by the RNN",
        "truth": "the truth",
    }
    grids = {
        name: _mosaic(np.asarray(images[name]), images["levels"])
        for name in titles
        if name in images
    }
    heights = [grid.shape[0] / grid.shape[1] for grid in grids.values()]
    figure = new_figure(sum(heights) * 4.2 + 0.28 * len(grids))
    panes = figure.subplots(len(grids), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, grid) in zip(panes, grids.items(), strict=True):
        _show(axes, grid, titles[name])
    return figure


def _mosaic(images: Int[np.ndarray, "N H W"], levels: int) -> Float[np.ndarray, "H2 W2 4"]:
    """Return images in rows of `COLUMNS` as one RGBA image with gaps that are transparent."""
    count, height, width = images.shape
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    step_y, step_x = height + _GAP, width + _GAP
    grid = np.zeros((rows * step_y - _GAP, columns * step_x - _GAP, 4))
    for number, image in enumerate(images):
        y, x = number // columns * step_y, number % columns * step_x
        part = grid[y : y + height, x : x + width]
        part[..., :3] = np.clip(image / (levels - 1), 0, 1)[..., None]
        part[..., 3] = image >= 0
    return grid


def _show(axes: Axes, grid: Float[np.ndarray, "H W 4"], title: str) -> None:
    axes.imshow(grid, interpolation="none")
    axes.set_title(title)
    axes.axis("off")
