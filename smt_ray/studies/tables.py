"""What a scaling study found, as the tables that its page and the terminal show."""

from collections.abc import Sequence

from rich import box
from rich.table import Table as RichTable

from smt_ray.report.scaling_figures import SHARES
from smt_ray.report.study_page import Table
from smt_ray.report.table import printed
from smt_ray.studies.points import Row
from smt_ray.studies.quality import Curve
from smt_ray.terminal import duration


def throughput_table(rows: Sequence[Row]) -> Table:
    """Return the throughput as it is read."""
    return Table(
        columns=["stage", "scaling", "workers", "per s", "efficiency", "of peak",
                 "compute", "data", "collectives", "saving"],
        rows=[
            [
                row["stage"],
                row["scaling"],
                _workers(row),
                _rounded(row["per_s"]),
                f"{row['efficiency']:.2f}",
                _percent(row["mfu"]),
                *(_percent(row[f"share_{name}"]) for name in SHARES),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _workers(row: Row) -> str:
    """Return how many workers a stage had; where it was gangs, the word too."""
    number = str(row["count"])
    return number if row["of"] == "workers" else f"{number} gang{'s' * (row['count'] > 1)}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


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


def cost_table(rows: Sequence[Row]) -> Table:
    """Return the costs as they are read."""
    return Table(
        columns=["tokens", "stage", "processes", "steps", "hours", "dollars", "start-up",
                 "labels", "storage", "collectives"],
        rows=[
            [f"{row['tokens']:.3g}", row["stage"],
             "" if row["processes"] is None else str(row["processes"]),
             _rounded(row["steps"]), _amount(row["hours"]), _amount(row["dollars"]),
             duration(row["startup_s"]),
             *(_bytes(row[f"{name}_bytes"]) for name in ("label", "storage", "collective"))]
            for row in rows
        ],
    )  # fmt: skip


def _rounded(count: float) -> str:
    """Return a whole number, from a million on in millions."""
    return f"{count:,.0f}" if count < 1_000_000 else f"{count / 1e6:,.4g} M"


def _amount(number: float) -> str:
    """Return hours or dollars with the digits that matter."""
    return f"{number:,.2f}" if number < 1000 else f"{number:,.0f}"


def _bytes(count: float) -> str:
    """Return bytes in the largest unit that they fill."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000 or unit == "PB":
            break
        count /= 1000
    return f"{count:,.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def terminal_table(title: str, table: Table) -> str:
    """Return a table of the page as text of at most 100 columns."""
    drawn = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column, numeric in zip(table.columns, table.numeric, strict=True):
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    return printed(drawn)
