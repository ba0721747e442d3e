"""The page of a scaling study: one section a question, with its figures and tables."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table as RichTable

from smt_ray.data.storage import Location
from smt_ray.evaluation import scaling as figures
from smt_ray.evaluation.panels import Panel, to_svg
from smt_ray.evaluation.study import Section, Table
from smt_ray.evaluation.table import duration, printed
from smt_ray.studies.points import Row
from smt_ray.studies.quality import QUANTITIES, Curve


@dataclass(frozen=True)
class Result:
    """The tables of a finished study; every one may be empty."""

    directory: Location
    throughput: list[Row]
    quality: list[Row]
    curves: list[Curve]
    compression: list[Row]
    cost: list[Row]


def chapters(result: Result) -> list[Section]:
    """Return the sections of what was studied; their figures lie in the directory as PNG, too."""
    sections = [_throughput(result), *_quality(result), _cost(result)]
    return [section for section in sections if section]


def terminal_table(title: str, table: Table) -> str:
    """Return a table of the page as text of at most 100 columns."""
    drawn = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column, numeric in zip(table.columns, table.numeric, strict=True):
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    return printed(drawn)


def _panel(directory: Location, name: str, title: str, caption: str, figure: Figure) -> Panel:
    """Return a figure as a panel of the page, and write it as `<name>.png`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    (directory / f"{name}.png").write_bytes(buffer.getvalue())
    return Panel(title, caption, to_svg(figure, name))


def _throughput(result: Result) -> Section | None:
    rows, directory = result.throughput, result.directory
    if not rows:
        return None
    panels = []
    if len({row["count"] for row in rows}) > 1:
        panels.append(
            _panel(
                directory,
                "efficiency",
                "Efficiency",
                "Throughput of one worker (or gang) against that of the fewest. Weak scaling "
                "gives each worker the same share, strong scaling keeps the global batch.",
                figures.efficiency_figure(rows),
            )
        )
    if any(row["share_compute"] is not None for row in rows):
        panels.append(
            _panel(
                directory,
                "shares",
                "Where the time goes",
                "Of rank 0 between validations. Collectives include waiting for slower ranks; "
                "checkpoints are as frequent as the run has them.",
                figures.shares_figure(rows),
            )
        )
    return Section(
        title="How does it scale in workers?",
        panels=panels,
        tables=[throughput_table(rows)],
        note="Rates count tokens (teacher), labels, or transitions, in the steady state. The "
        "fraction of peak is that of FLOPs in matrix products, counted from the networks, to what "
        "one process reached in a large matrix product on the same device.",
    )


def throughput_table(rows: Sequence[Row]) -> Table:
    """Return the throughput as it is read."""
    return Table(
        columns=["stage", "scaling", "count", "batch", "per second", "efficiency", "of peak",
                 "compute", "data", "collectives", "checkpoint"],
        rows=[
            [
                row["stage"],
                row["scaling"],
                f"{row['count']} {row['of']}",
                str(row["batch"]),
                f"{row['per_s']:,.0f}",
                f"{row['efficiency']:.2f}",
                _percent(row["mfu"]),
                *(_percent(row[f"share_{name}"]) for name in figures.SHARES),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _quality(result: Result) -> list[Section]:
    rows, directory = result.quality, result.directory
    if not rows:
        return []
    unit = "bits per target" if rows[0]["unit"] == "accuracy" else rows[0]["unit"]
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for curve in result.curves:
        name = curve.measure.removesuffix("_bits")
        group = groups.setdefault((curve.field, curve.given), {"quantity": curve.quantity})
        group[name] = (curve.x, curve.loss, curve.law)
    panels = []
    for number, ((field, given), group) in enumerate(groups.items()):
        quantity = QUANTITIES[group.pop("quantity")]
        panels.append(
            _panel(
                directory,
                f"quality-{number}",
                f"{field}{f', {given}' if given else ''}",
                "A line is the fitted power law.",
                figures.losses_figure(group, x=quantity, y=unit),
            )
        )
    sections = [
        Section(
            title="How does it scale in size?",
            panels=panels,
            tables=[laws_table(result.curves), quality_table(rows)],
            note="L = a + b x^-c, by least squares; intervals are of 95 % confidence. With fewer "
            "than five sizes, or where a floor a does not pay, the law is pure (a = 0); with fewer "
            "than three there is none. BPTT is set against the FLOPs that it spent itself.",
        )
    ]
    if result.compression:
        sections.append(
            Section(
                title="How small may the memory be?",
                panels=[
                    _panel(
                        directory,
                        "compression",
                        "Memory against compute",
                        "The smallest memory that reached a loss for so many FLOPs: a step down is "
                        "memory saved by training longer or larger.",
                        figures.compression_figure(result.compression, unit=unit),
                    )
                ],
                tables=[compression_table(result.compression)],
            )
        )
    return sections


def compression_table(rows: Sequence[Row]) -> Table:
    """Return the smallest memories as they are read."""
    return Table(
        columns=["target", "memory K * D", "FLOPs", "reached", "run"],
        rows=[
            [f"{row['target_bits']:.3f}", str(row["memory"]), f"{row['flops']:.3g}",
             f"{row['rnn_bits']:.3f}", row["run"]]
            for row in rows
        ],
    )  # fmt: skip


def laws_table(found: Sequence[Curve]) -> Table:
    """Return the laws as they are read."""

    def cell(row: Row, name: str) -> str:
        if row[name] is None or (name == "a" and not row["a"]):
            return ""
        return f"{row[name]:.3g} ({row[f'{name}_low']:.3g} to {row[f'{name}_high']:.3g})"

    rows = [curve.row() for curve in found]
    return Table(
        title="Power laws",
        columns=["loss", "against", "varied", "runs", "form", "a", "b", "c"],
        rows=[
            [row["measure"], row["against"],
             row["field"] + (f" ({row['given']})" if row["given"] else ""),
             str(row["points"]), row["form"], *(cell(row, name) for name in "abc")]
            for row in rows
        ],
    )  # fmt: skip


def quality_table(rows: Sequence[Row]) -> Table:
    """Return the runs as they are read."""
    return Table(
        title="Runs",
        columns=["run", "parameters", "memory", "tokens", "FLOPs", "teacher", "RNN", "BPTT"],
        rows=[
            [row["run"], f"{row['parameters']:,}", str(row["memory"]), f"{row['tokens']:.3g}",
             f"{row['flops']:.3g}",
             *("" if row[name] is None else f"{row[name]:.3f}"
               for name in ("teacher_bits", "rnn_bits", "bptt_bits"))]
            for row in rows
        ],
    )  # fmt: skip


def _cost(result: Result) -> Section | None:
    rows, directory = result.cost, result.directory
    if not rows:
        return None
    panels = []
    if len({row["tokens"] for row in rows}) > 1:
        key, y = ("dollars", "dollars") if rows[-1]["dollars"] else ("hours", "hours")
        panels.append(
            _panel(directory, "cost", "Cost", "Of each stage, start-up included.",
                   figures.cost_figure(rows, key, y=y))
        )  # fmt: skip
    return Section(
        title="What would it cost?",
        panels=panels,
        tables=[cost_table(rows)],
        note="Times are linear in the measured seconds of a step, which are a line in its FLOPs; "
        "token shards and evaluation are not priced. Network bytes are what is read from and "
        "written to the storage and what all processes send in collectives.",
    )


def cost_table(rows: Sequence[Row]) -> Table:
    """Return the costs as they are read."""
    return Table(
        columns=["tokens", "stage", "processes", "steps", "hours", "dollars", "start-up",
                 "labels", "storage", "collectives"],
        rows=[
            [f"{row['tokens']:.3g}", row["stage"],
             "" if row["processes"] is None else str(row["processes"]),
             f"{row['steps']:,}", f"{row['hours']:,.2f}", f"{row['dollars']:,.2f}",
             duration(row["startup_s"]),
             *(_bytes(row[f"{name}_bytes"]) for name in ("label", "storage", "collective"))]
            for row in rows
        ],
    )  # fmt: skip


def _bytes(count: float) -> str:
    """Return bytes in the largest unit that they fill."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000 or unit == "PB":
            break
        count /= 1000
    return f"{count:,.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
