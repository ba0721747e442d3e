"""How the values of `summary.json` are called and written, and the table that ends a job."""

import io
import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from smt_ray.terminal import duration

Summary = Mapping[str, Any]

BITS = "bits per byte"
_MODELS = {
    "order0": "order-0 model",
    "order1": "order-1 model",
    "order2": "order-2 model",
    "bptt": "BPTT",
    "teacher_before_dmt": "teacher before DMT",
    "teacher": "teacher",
    "rnn_before_dmt": "RNN before DMT",
    "rnn_before_finetune": "RNN before fine-tuning",
    "rnn": "RNN",
}


def key_of(name: str, measure: str) -> str:
    """Return a model's key in a summary: (`rnn_before_dmt`, `bits`) -> `rnn_bits_before_dmt`."""
    model, before, stage = name.partition("_before_")
    return f"{model}_{measure}{before}{stage}"


def measure_of(summary: Summary) -> tuple[str, str]:
    """Return the measure in a summary's main keys, and its unit."""
    unit = summary.get("unit", BITS)
    return ("accuracy" if unit == "accuracy" else "bits"), unit


def _scores(measure: str, unit: str) -> dict[str, str]:
    plain = {key_of(name, measure): f"{label}, {unit}" for name, label in _MODELS.items()}
    long = {key_of(name, f"long_{measure}"): f"{label} at 4 x the length, {unit}"
            for name, label in _MODELS.items()}  # fmt: skip
    return plain | long


LABELS = {
    "name": "run",
    "preset": "preset",
    "source": "source",
    "tokens_source": "tokens in the source's training split",
    "tokens_teacher": "training tokens of the teacher",
    "tokens_transition": "training tokens of the transition",
    "tokens_dmt": "training tokens of DMT",
    "tokens_finetune": "training tokens of fine-tuning",
    "tokens_bptt": "training tokens of BPTT",
    "parameters_teacher": "parameters of the teacher",
    "parameters_rnn": "parameters of the RNN",
    **_scores("accuracy", "accuracy"),
    **_scores("bits", BITS),
    "drift_before_dmt": "drift before DMT, NMSE",
    "drift_before_finetune": "drift before fine-tuning, NMSE",
    "drift": "drift, NMSE",
    "labels": "memory labels",
    "labels_per_s": "labels per second",
    "transitions_per_s": "training transitions per second",
    "tokens_per_s": "training tokens of the teacher per second",
    "sequences": "validation sequences",
    "rnn_tokens_per_s": "RNN, tokens per second",
    "wall_seconds": "wall time",
    "resumed": "resumed",
}
"""Keys of a summary in the order of reading; others follow under their own names."""


def entries(summary: Summary) -> list[tuple[str, str, str]]:
    """Return (key, label, written value) of every value that is there, in the order of reading."""
    measure, unit = measure_of(summary)
    bits = "bits per target" if measure == "accuracy" else unit
    keys = [key for key in LABELS if key in summary] + [key for key in summary if key not in LABELS]
    labels = {key: LABELS.get(key, key.replace("seconds_", "time of stage ")) for key in keys}
    return [
        (key, labels[key].replace(BITS, bits), written(key, summary[key]))
        for key in keys
        if summary[key] is not None and key != "unit"
    ]


def written(key: str, value: Any) -> str:
    """Return a value as text, with the digits and the unit that its key asks for."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if "bits" in key or "accuracy" in key:
        return f"{value:.3f}"
    if "seconds" in key:
        return duration(value)
    if isinstance(value, int) or key.endswith("_per_s"):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def summary_table(summary: Summary) -> str:
    """Return the results as a table of at most 100 columns; coloured only on a terminal."""
    headline = key_of("rnn", measure_of(summary)[0])
    table = Table(box=box.SIMPLE_HEAD, title=f"smt-ray: {summary['name']}", title_justify="left")
    table.add_column("result")
    table.add_column("value", justify="right", overflow="fold")
    for key, label, value in entries(summary):
        if key not in {"name", "preset", "resumed"} and not key.startswith("seconds_"):
            table.add_row(label, value, style="bold green" if key == headline else None)
    return printed(table)


def printed(table: Table) -> str:
    """Return a table as text of at most 100 columns; coloured only on a terminal."""
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
