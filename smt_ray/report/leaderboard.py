"""What a sweep found: its trials as CSV, as a table on the terminal, and as a page."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table as RichTable

from smt_ray.report import landscape
from smt_ray.report.landscape import Points
from smt_ray.report.panels import Panel, to_svg
from smt_ray.report.ranking import Entry, best, higher_is_better, ranked
from smt_ray.report.study_page import Section, Study, Table
from smt_ray.report.table import LABELS, printed, written
from smt_ray.terminal import duration

AXES = ("model.memory-tokens", "model.encoder-depth")
"""Fields of the heat map where both are swept; else the first two."""
_CELLS = 10  # values of a field of a heat map, at most: of more, a plot of points
_BESIDE = ("teacher_bits", "teacher_accuracy", "drift", "parameters_rnn", "wall_seconds")
"""Figures that the tables show beside the one that trials are ordered by."""
_NARROW = 3  # figures in the terminal's table


def csv_text(entries: Sequence[Entry]) -> str:
    """Return one row a trial: id, status, the swept fields, all figures, the error."""
    fields = _fields(entries)
    figures = list(dict.fromkeys(name for entry in entries for name in entry.figures))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "status", *fields, *figures, "error"])
    for entry in entries:
        values = [entry.fields.get(name) for name in fields]
        values += [entry.figures.get(name) for name in figures]
        rows.writerow([entry.id, entry.status, *values, entry.error])
    return text.getvalue()


def table(entries: Sequence[Entry], metric: str) -> Table:
    """Return the trials as written cells, the best first and marked."""
    fields, shown = _fields(entries), _shown(entries, metric)
    rows = [[*_row(entry, fields, shown), note(entry)] for entry in ranked(entries, metric)]
    noted = any(row[-1] for row in rows)
    columns = ["trial", "status", *fields, *(LABELS.get(name, name) for name in shown), "note"]
    return Table(
        columns=columns if noted else columns[:-1],
        rows=rows if noted else [row[:-1] for row in rows],
        marked=0 if best(entries, metric) else None,
    )


def terminal_table(name: str, entries: Sequence[Entry], metric: str) -> str:
    """Return the trials as a table of at most 100 columns; coloured only on a terminal.

    Below it stands in one line each why trials have no score.
    """
    fields, order = _fields(entries), ranked(entries, metric)
    shown = _shown(entries, metric)[:_NARROW]
    ends = [field.rsplit(".", 1)[-1] for field in fields]
    drawn = RichTable(box=box.SIMPLE_HEAD, title=f"smt-ray sweep: {name}", title_justify="left")
    drawn.add_column("trial")
    drawn.add_column("status", no_wrap=True)
    for field, end in zip(fields, ends, strict=True):
        title = end if ends.count(end) == 1 else field
        longest = max(len(_written(entry.fields.get(field, ""))) for entry in entries)
        # Spaces, so that a long name goes on in the next line.
        drawn.add_column(title.replace("-", " "), min_width=min(12, longest), overflow="fold")
    for figure in shown:
        drawn.add_column(figure.replace("_", " "), justify="right", min_width=5)
    for entry in order:
        first = entry is order[0] and entry.score(metric) is not None
        drawn.add_row(*_row(entry, fields, shown), style="bold green" if first else None)
    notes = [f"{entry.id}: {note(entry)}\n" for entry in order if note(entry)]
    return printed(drawn) + "".join(notes)


def sweep_page(
    summary: Mapping[str, Any],
    entries: Sequence[Entry],
    metric: str,
    *,
    about: str,
    command: str,
    config: Mapping[str, Any],
) -> Study:
    """Return the page of a sweep.

    Args:
        summary: its `summary.json`.
        entries: its trials.
        metric: the figure that they are ordered by.
        about: the space, in words.
        command: what makes the best run again.
        config: the settings that all trials share.
    """
    winner, label = best(entries, metric), LABELS.get(metric, metric)
    points = [
        (entry.fields, score)
        for entry in entries
        for score in [entry.score(metric)]
        if score is not None
    ]
    counts = ("finished", "stopped", "failed", "teachers", "label_sets")
    facts = [(name.replace("_", " "), str(summary[name])) for name in counts]
    facts.append(("wall time", duration(summary["wall_seconds"])))
    return Study(
        title=summary["name"],
        kind="sweep",
        about=about,
        headline=(written(metric, winner.score(metric)), f"{label}: the best trial, {winner.id}")
        if winner
        else None,
        lead=_lead(winner) if winner else "No trial has finished.",
        facts=facts,
        sections=[
            Section(title="What decides the score?", panels=_panels(points, metric)),
            Section(title="All trials", tables=[table(entries, metric)]),
        ]
        if points
        else [Section(title="All trials", tables=[table(entries, metric)])],
        commands=("Use the best", command) if winner else None,
        config=config,
    )


def axes_of(points: Points) -> list[str]:
    """Return the fields with more than one value, those of `AXES` first where both are there."""
    varied = [name for name in points[0][0] if len(landscape.values_of(points, name)) > 1]
    first = [name for name in AXES if name in varied]
    return [*first, *(name for name in varied if name not in first)] if first[1:] else varied


def _panels(points: Points, metric: str) -> list[Panel]:
    """Return the map of the first two fields, or of one, and all fields side by side."""
    higher, label = higher_is_better(metric), LABELS.get(metric, metric)
    better = "higher" if higher else "lower"
    names, panels = axes_of(points), []
    if names[1:]:
        x, y = names[:2]
        few = all(len(landscape.values_of(points, name)) <= _CELLS for name in (x, y))
        draw = landscape.heat_figure if few else landscape.scatter_figure
        others = " over all other fields" if names[2:] and few else ""
        caption = (
            f"The best {label}{others}: {better} is better, and darker. An empty cell has no "
            "finished trial."
            if few
            else f"One point a trial, the darker the better its {label}."
        )
        svg = to_svg(draw(points, x, y, label, higher=higher), "sweep-map")
        panels.append(Panel(f"{y} and {x}", caption, svg))
    elif names:
        figure = landscape.scatter_figure(points, names[0], label, label, higher=higher)
        caption = f"One point a trial: {better} is better."
        panels.append(Panel(names[0], caption, to_svg(figure, "sweep-map")))
    figure = landscape.parallel_figure(points, label, higher=higher)
    caption = "One line a trial, the darker the better: where dark lines meet, a value matters."
    panels.append(Panel("All fields", caption, to_svg(figure, "sweep-parallel")))
    return panels


def _fields(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.fields))


def _shown(entries: Sequence[Entry], metric: str) -> list[str]:
    """Return the figures of the tables that any trial has."""
    names = [metric, *(name for name in _BESIDE if name != metric)]
    return [name for name in names if any(e.figures.get(name) is not None for e in entries)]


def _row(entry: Entry, fields: Sequence[str], shown: Sequence[str]) -> list[str]:
    swept = [_written(entry.fields.get(name, "")) for name in fields]
    return [entry.id, entry.status, *swept, *(_figure(entry, name) for name in shown)]


def _lead(winner: Entry) -> str:
    fields = ", ".join(f"{name} = {_written(value)}" for name, value in winner.fields.items())
    return f"Best with {fields}."


def _written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(entry: Entry, name: str) -> str:
    value = entry.figures.get(name)
    return "" if value is None else written(name, value)


def note(entry: Entry) -> str:
    """Return why a trial has no score; nothing of one that has."""
    if entry.status == "stopped" and entry.figures.get("stopped_bits") is not None:
        step, bits = entry.figures["stopped_step"], entry.figures["stopped_bits"]
        return f"teacher at step {step:,}: {bits:.3f} bits a token"
    return entry.error
