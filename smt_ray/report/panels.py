"""The panels of the report: which figures a run has, and how each is read."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from smt_ray.report import pictures, plots
from smt_ray.report.plots import SERIES, Curve, Rows, Values
from smt_ray.report.table import BITS, key_of, measure_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a report shows; every part but the summary may be empty, and then leaves no trace."""

    summary: Mapping[str, Any]
    """The keys and values of `summary.json`; a value of None counts as missing."""
    stages: Sequence[Mapping[str, Any]] = ()
    """`stage`, `artifact`, `reused` (bool), `seconds`, and `rows` or `steps`, in order."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """The summary's `unit` by position, (L,), for names of `plots.SERIES`; None is no target."""
    long_curves: Mapping[str, Curve] = field(default_factory=dict)
    """The same for RNNs on sequences of four times the length, (4 L,)."""
    drift: Mapping[str, Curve] = field(default_factory=dict)
    """NMSE of the rollout by position, (L,), for `rnn` and `rnn_before_dmt`."""
    gradients: Mapping[str, Curve] = field(default_factory=dict)
    """||dL/dm_t|| by timestep, (L,), for `teacher`, and for `rnn` and `bptt` unrolled."""
    next_k: Mapping[str, Curve] = field(default_factory=dict)
    """The unit by how far ahead the target is, (F,), for memories of `teacher` and `rnn`."""
    geometry: Mapping[str, pictures.Points] = field(default_factory=dict)
    """`x`, `y` and `state` of memories, for `teacher` and `rnn`."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """`samples`, `prompts`, `completions`, `truth` and `levels`, as of `images.gallery`."""
    metrics: Mapping[str, Rows] = field(default_factory=dict)
    """Rows of `metrics.jsonl` by stage."""
    sample: Mapping[str, str] = field(default_factory=dict)
    """`prompt`, and `text`: what the RNN wrote after it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """`RunConfig.to_dict()`."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, processors, workers, by name."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure, with its title and how to read it."""

    title: str
    caption: str
    svg: Markup


# By stage: the training metric that compares with the validation loss, its unit, how to read it.
_UNROLLED = ("loss/total", "cross-entropy (nats)")
_TRAINED = {
    "teacher": (
        "loss/total",
        "loss (nats)",
        "Eq. 5 for encoder, decoder and cell together: the closer the two curves stay, the less "
        "the teacher overfits.",
    ),
    "transition": (
        "loss/total",
        "mean squared error",
        "Error of one step from a label to the next (Eq. 3), for all steps of a sequence at once.",
    ),
    "dmt": (
        "loss/readout",
        "cross-entropy (nats)",
        "The RNN on its own memories: in training they are a few steps old, in validation they "
        "come from a full rollout from the empty memory.",
    ),
    "finetune": (*_UNROLLED, "The finished RNN trained on by backpropagation through time."),
    "bptt": (
        *_UNROLLED,
        "The baseline: the same cell and readout from fresh weights, by backpropagation through "
        "time.",
    ),
}
_OTHER = ("loss/total", "loss", "Training and validation loss over optimizer steps.")

_THEME = {"ink": plots.INK, "muted": plots.MUTED, "grid": plots.GRID} | {
    name: series.color for name, series in SERIES.items()
}
_POSITION = "position in the sequence (inputs read)"
_NMSE = "NMSE of the memory"


def scores_bars(summary: Mapping[str, Any]) -> Markup | None:
    """Return the bars of the main scores; None without any."""
    measure, unit = measure_of(summary)
    found = {name: summary.get(key_of(name, measure)) for name in SERIES}
    scores = {name: score for name, score in found.items() if score is not None}
    return to_svg(plots.bars_figure(scores, x=unit), "scores") if scores else None


def result_panels(report: Report) -> list[Panel]:
    """Return what the finished models do on validation sequences."""
    measure, unit = measure_of(report.summary)
    panels: list[Panel] = []

    def add(title: str, caption: str, figure: Figure) -> None:
        panels.append(Panel(title, caption, to_svg(figure, f"result-{len(panels)}")))

    better = "higher" if measure == "accuracy" else "lower"
    text = unit == BITS
    if curves := _spread(report.curves):
        reading = (
            "a curve that keeps falling makes use of a longer past"
            if text
            else "positions differ in how much there is to tell"
        )
        add(
            f"{unit[0].upper()}{unit[1:]} by position",
            f"After so many inputs, mean over validation: {better} is better, and {reading}.",
            plots.curves_figure(curves, x=_POSITION, y=unit, log_x=text),
        )
    if curves := _spread(report.long_curves):
        length = max(map(len, curves.values())) / 4
        add(
            "Past the trained length",
            "RNNs on sequences four times as long as those they were trained on, from the empty "
            f"memory ({better} is better): a curve that stays level right of the line runs on as "
            "well as before.",
            plots.curves_figure(curves, x=_POSITION, y=unit, log_x=text, mark=(length, "trained")),
        )
    if curves := _spread(report.drift, positive=True):
        add(
            "Drift",
            "Squared distance of the RNN's own memory from the teacher's, over the variance of "
            "the teacher's: 0 is a perfect copy, 1 is as far off as their mean. Where the labels "
            "weigh little or nothing in DMT (`dmt.dynamics`), the RNN may do well far off.",
            plots.curves_figure(curves, x=_POSITION, y=_NMSE, log_x=text, log_y=True),
        )
    if curves := _spread(report.gradients, positive=True):
        add(
            "How far gradients reach",
            "Norm of the loss's gradient at the memory of each timestep. Unrolled through an RNN, "
            "it must come back through all later steps: it vanishes if the curve falls to the "
            "left, and explodes if it rises. The teacher's memories have losses of their own, so "
            "that no path is longer than another (Eq. 2 and 3 as they are, at all timesteps).",
            plots.curves_figure(
                curves, x="timestep t", y="||dL/dm|| at t", log_x=False, log_y=True
            ),
        )
    if curves := _spread(report.next_k):
        add(
            "What a memory tells of later targets",
            "The teacher's decoder, from one memory and the inputs after it, on the next target, "
            f"the one after, and so on ({better} is better). The next one may be told by looking "
            "back to the inputs; what the teacher's curve loses after it, the memory does not hold "
            "or the decoder does not find. What lies between the curves, the RNN has lost, or "
            "keeps where this decoder does not look: its memories are the teacher's only as far as "
            "`dmt.dynamics` holds them.",
            plots.curves_figure(curves, x="targets ahead", y=unit, log_x=False),
        )
    if report.geometry:
        add(
            "Where memories lie",
            "Memories in the two directions in which the teacher's vary most, one point each, "
            "coloured by what must be remembered: clusters of one colour are states told apart. "
            "The RNN's lie where its teacher's do as far as `dmt.dynamics` holds them there.",
            pictures.geometry_figure(report.geometry),
        )
    if report.images:
        add(
            "What it draws",
            "Pixel by pixel, each drawn given the ones before (at `evaluation.temperature`). A "
            "completion goes on from the first half of an image that was not trained on, and need "
            "not be the truth below it to be a likely one.",
            pictures.images_figure(report.images),
        )
    return panels


def training_panels(report: Report) -> list[Panel]:
    """Return each stage's losses, and what DMT did to the RNN's memories."""
    panels = []
    for stage, rows in report.metrics.items():
        if rows:
            key, unit, caption = _TRAINED.get(stage, _OTHER)
            figure = plots.training_figure(rows, key, unit)
            panels.append(Panel(stage, caption, to_svg(figure, stage)))
    rows = report.metrics.get("dmt", ())
    if any("drift/rollout" in row or "drift/staleness" in row for row in rows):
        panels.append(
            Panel(
                "Drift during DMT",
                "Error of a full rollout over the variance of the labels, and the same measure "
                "between the states that DMT trains on and a fresh rollout: they are stale by as "
                "much as the weights have changed since.",
                to_svg(plots.drift_figure(rows), "dmt-drift"),
            )
        )
    if ages := errors_by_age(rows):
        panels.append(
            Panel(
                "Error by age in DMT",
                "At the last validation, by how many steps of its own the RNN has made since it "
                "started from a label (each point covers ages up to the next): a flat curve means "
                "that errors do not build up.",
                to_svg(
                    plots.curves_figure(ages, x="age (steps since a label)", y=_NMSE, log_y=True),
                    "dmt-ages",
                ),
            )
        )
    return panels


def errors_by_age(rows: Rows) -> dict[str, Values]:
    """Return the last NMSE of DMT's states by age 1, 2, ..., NaN between those that are logged."""
    prefix = "drift/age_"
    logged = [row for row in rows if any(key.startswith(prefix) for key in row)]
    if not logged:
        return {}
    last = max(logged, key=lambda row: row["step"])
    ages = {int(key.removeprefix(prefix)): last[key] for key in last if key.startswith(prefix)}
    curve = np.full(max(ages), math.nan)
    for age, error in ages.items():
        curve[age - 1] = error
    return {"rnn": curve}


def _spread(curves: Mapping[str, Curve], *, positive: bool = False) -> dict[str, Values]:
    """Return the curves as arrays with NaN, without those of fewer than two values.

    With `positive`, 0 is no value either: it has no place on a logarithmic axis.
    """
    arrays = {name: np.asarray(curve, float) for name, curve in curves.items() if name in SERIES}
    if positive:
        arrays = {name: np.where(curve > 0, curve, math.nan) for name, curve in arrays.items()}
    return {name: curve for name, curve in arrays.items() if np.isfinite(curve).sum() > 1}


def to_svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an SVG element with the page's fonts, colours and width."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    svg = re.sub(r'(<g) id="[^"]*"| id="image[^"]*"', r"\1", svg)
    for variable, color in _THEME.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    return Markup(svg)
