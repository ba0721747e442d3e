"""How the values of `summary.json` are called and written, and the table that ends a job."""

import io
import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Summary = Mapping[str, Any]

LABELS = {
    "name": "run",
    "preset": "preset",
    "source": "source",
    "tokens_train": "training tokens",
    "parameters_teacher": "parameters of the teacher",
    "parameters_rnn": "parameters of the RNN",
    "order0_bits": "order-0 model, bits per byte",
    "order1_bits": "order-1 model, bits per byte",
    "order2_bits": "order-2 model, bits per byte",
    "bptt_bits": "BPTT, bits per byte",
    "teacher_bits_before_dmt": "teacher before DMT, bits per byte",
    "teacher_bits": "teacher, bits per byte",
    "rnn_bits_before_dmt": "RNN before DMT, bits per byte",
    "rnn_bits": "RNN, bits per byte",
    "drift_before_dmt": "drift before DMT, NMSE",
    "drift": "drift, NMSE",
    "labels": "memory labels",
    "labels_per_s": "labels per second",
    "transitions_per_s": "transitions per second",
    "tokens_per_s": "teacher's training tokens per second",
    "sequences": "validation sequences",
    "rnn_tokens_per_s": "RNN, tokens per second",
    "wall_seconds": "wall time",
    "resumed": "resumed",
}
"""Keys of a summary in the order of reading; others follow under their own names."""


def entries(summary: Summary) -> list[tuple[str, str, str]]:
    """Return (key, label, written value) of every value that is there, in the order of reading."""
    keys = [key for key in LABELS if key in summary] + [key for key in summary if key not in LABELS]
    labels = {key: LABELS.get(key, key.replace("seconds_", "time of stage ")) for key in keys}
    return [
        (key, labels[key], written(key, summary[key])) for key in keys if summary[key] is not None
    ]


def written(key: str, value: Any) -> str:
    """Return a value as text, with the digits and the unit that its key asks for."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if "bits" in key:
        return f"{value:.3f}"
    if "seconds" in key:
        return duration(value)
    if isinstance(value, int) or key.endswith("_per_s"):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time as `4.2 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def summary_table(summary: Summary) -> str:
    """Return the results as a table of at most 100 columns; coloured only on a terminal."""
    table = Table(box=box.SIMPLE_HEAD, title=f"smt-ray: {summary['name']}", title_justify="left")
    table.add_column("result")
    table.add_column("value", justify="right", overflow="fold")
    for key, label, value in entries(summary):
        if key not in {"name", "preset", "resumed"} and not key.startswith("seconds_"):
            table.add_row(label, value, style="bold green" if key == "rnn_bits" else None)
    console = Console(
        file=io.StringIO(),
        width=100,
        force_terminal=sys.stdout.isatty(),
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(table)
    return capture.get()
