"""The report of a run: one HTML file that holds its figures and asks nothing of the network."""

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
import matplotlib
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from smt_ray.data.storage import Location
from smt_ray.evaluation import plots
from smt_ray.evaluation.plots import SERIES, Curve, Rows
from smt_ray.evaluation.table import duration, entries, written


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a report shows; every part but the summary may be empty, and then leaves no trace."""

    summary: Mapping[str, Any]
    """The keys and values of `summary.json`; a value of None counts as missing."""
    stages: Sequence[Mapping[str, Any]] = ()
    """`stage`, `artifact`, `reused` (bool), `seconds`, and `rows` or `steps`, in order."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Bits per byte by position, (L,), for names of `plots.SERIES`."""
    drift: Mapping[str, Curve] = field(default_factory=dict)
    """NMSE of the rollout by position, (L,), for `rnn` and `rnn_before_dmt`."""
    ages: Mapping[str, Curve] = field(default_factory=dict)
    """NMSE of DMT's states by age 1, 2, ..., for `rnn`."""
    metrics: Mapping[str, Rows] = field(default_factory=dict)
    """Rows of `metrics.jsonl` by stage."""
    sample: Mapping[str, str] = field(default_factory=dict)
    """`prompt`, and `text`: what the RNN wrote after it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """`RunConfig.to_dict()`."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, processors, workers, by name."""


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    caption: str
    svg: Markup


# By stage: the training metric that compares with the validation loss, its unit, how to read it.
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
}
_OTHER = ("loss/total", "loss", "Training and validation loss over optimizer steps.")

_THEME = {"ink": plots.INK, "muted": plots.MUTED, "grid": plots.GRID} | {
    name: series.color for name, series in SERIES.items()
}


def write_report(directory: Location, report: Report) -> None:
    """Write `report.html` into the run's directory, which also holds the exported model, `rnn/`."""
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(files("smt_ray.evaluation").joinpath("report.html.j2").read_text("utf-8"))
    summary = {key: value for key, value in report.summary.items() if value is not None}
    page = template.render(
        report=report,
        summary=summary,
        entries=entries(summary),
        written=written,
        duration=duration,
        lead=_lead(summary),
        facts=_facts(summary),
        bars=_bars(summary),
        results=_results(report),
        training=_training(report),
        config=yaml.safe_dump(dict(report.config), sort_keys=False),
        model=shlex.quote(str(directory / "rnn")),
        longest=max([stage["seconds"] for stage in report.stages], default=0) or 1,
    )
    (directory / "report.html").write_text(page)


def _lead(summary: Mapping[str, Any]) -> str:
    """Return the main result in words."""
    others = {"teacher_bits": "its teacher", "order2_bits": "the order-2 model"}
    gaps = {name: summary["rnn_bits"] - summary[key] for key, name in others.items()
            if {key, "rnn_bits"} <= summary.keys()}  # fmt: skip
    against = [
        f"{abs(gap):.3f} {'more' if gap > 0 else 'fewer'} than {name}" for name, gap in gaps.items()
    ]
    return (
        f"From the empty memory, on its own, it needs {' and '.join(against)}." if against else ""
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return further headline figures, as (label, text)."""
    facts = {
        "drift (NMSE)": "drift",
        "drift before DMT": "drift_before_dmt",
        "training tokens": "tokens_train",
        "RNN parameters": "parameters_rnn",
        "labels / s": "labels_per_s",
        "transitions / s": "transitions_per_s",
        "training tokens / s": "tokens_per_s",
        "wall time": "wall_seconds",
    }
    return [(label, written(key, summary[key])) for label, key in facts.items() if key in summary]


def _bars(summary: Mapping[str, Any]) -> Markup | None:
    bits = {name: summary[f"{name}_bits"] for name in SERIES if f"{name}_bits" in summary}
    if "rnn_bits_before_dmt" in summary:
        bits["rnn_before_dmt"] = summary["rnn_bits_before_dmt"]
    return _svg(plots.bars_figure(bits, x="bits per byte"), "bits") if bits else None


def _results(report: Report) -> list[_Panel]:
    position = "position in the sequence (tokens read)"
    nmse = "NMSE of the memory"
    panels = []
    if report.curves:
        figure = plots.curves_figure(report.curves, x=position, y="bits per byte")
        panels.append(
            _Panel(
                "Bits by position",
                "Bits for the next byte after so many tokens, mean over validation: lower is "
                "better, and a curve that keeps falling makes use of a longer past.",
                _svg(figure, "position"),
            )
        )
    if report.drift:
        figure = plots.curves_figure(report.drift, x=position, y=nmse, log_y=True)
        panels.append(
            _Panel(
                "Drift",
                "Squared distance of the RNN's own memory from the teacher's, over the variance of "
                "the teacher's: 0 is a perfect copy, 1 is as far off as their mean.",
                _svg(figure, "drift"),
            )
        )
    if report.ages:
        figure = plots.curves_figure(report.ages, x="age (steps since a label)", y=nmse, log_y=True)
        panels.append(
            _Panel(
                "Error by age in DMT",
                "The same measure inside DMT, by how many steps of its own the RNN has made since "
                "it started from a label: a flat curve means that errors do not build up.",
                _svg(figure, "ages"),
            )
        )
    return panels


def _training(report: Report) -> list[_Panel]:
    panels = []
    for stage, rows in report.metrics.items():
        if rows:
            key, unit, caption = _TRAINED.get(stage, _OTHER)
            figure = plots.training_figure(rows, key, unit)
            panels.append(_Panel(stage, caption, _svg(figure, stage)))
    return panels


def _svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an SVG element with the page's fonts, colours and width."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for variable, color in _THEME.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    return Markup(svg)
