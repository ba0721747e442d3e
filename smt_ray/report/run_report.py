"""The report of a run: one HTML file that holds its figures and asks nothing of the network."""

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from smt_ray.data.storage import Location
from smt_ray.report.page import render
from smt_ray.report.panels import Report, result_panels, scores_bars, training_panels
from smt_ray.report.table import entries, key_of, measure_of, written
from smt_ray.terminal import duration


def write_report(directory: Location, report: Report) -> None:
    """Write `report.html` into the run's directory, which also holds the exported model, `rnn/`."""
    summary = {key: value for key, value in report.summary.items() if value is not None}
    page = render(
        "report",
        title=summary["name"],
        report=report,
        summary=summary,
        entries=entries(summary),
        written=written,
        duration=duration,
        lead=_lead(summary),
        facts=_facts(summary),
        headline=key_of("rnn", measure_of(summary)[0]),
        unit=measure_of(summary)[1],
        bars=scores_bars(summary),
        results=result_panels(report),
        training=training_panels(report),
        config=yaml.safe_dump(dict(report.config), sort_keys=False),
        model=shlex.quote(str(directory / "rnn")),
        directory=repr(str(directory / "rnn")),
        longest=max([stage["seconds"] for stage in report.stages], default=0) or 1,
    )
    (directory / "report.html").write_text(page)


def _lead(summary: Mapping[str, Any]) -> str:
    """Return the main result in words."""
    measure, _ = measure_of(summary)
    less = "less" if measure == "accuracy" else "fewer"
    others = {"teacher": "its teacher", "order2": "the order-2 model", "bptt": "BPTT"}
    scores = {name: summary.get(key_of(name, measure)) for name in ("rnn", *others)}
    if scores["rnn"] is None:
        return ""
    against = [
        f"{abs(gap):.3f} {'more' if gap > 0 else less} than {other}"
        for name, other in others.items()
        if scores[name] is not None
        for gap in [scores["rnn"] - scores[name]]
    ]
    joined = " and ".join([", ".join(against[:-1]), against[-1]] if against[1:] else against)
    return f"From the empty memory, on its own: {joined}." if against else ""


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return further headline figures, as (label, text)."""
    facts = {
        "drift (NMSE)": "drift",
        "drift before DMT": "drift_before_dmt",
        "training tokens, teacher": "tokens_teacher",
        "training tokens, DMT": "tokens_dmt",
        "RNN parameters": "parameters_rnn",
        "labels / s": "labels_per_s",
        "transitions / s": "transitions_per_s",
        "training tokens / s, teacher": "tokens_per_s",
        "wall time": "wall_seconds",
    }
    return [(label, written(key, summary[key])) for label, key in facts.items() if key in summary]
