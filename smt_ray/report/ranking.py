"""The trials of a sweep as they ended, and their order by a figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from smt_ray.report.plots import SERIES
from smt_ray.report.table import key_of

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One trial: what was swept, and what came of it."""

    id: str
    status: Status = "running"
    fields: Mapping[str, Any]
    """The swept fields, dotted, with their values."""
    stages: Mapping[str, str] = field(default_factory=dict)
    """Names of the artifacts that it is made of, by stage, there or not."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Its summary; of a stopped trial, what was known when it was stopped."""
    error: str = ""
    """Why it failed, in one line."""

    def score(self, metric: str) -> float | None:
        """Return a figure of a finished trial, None without one that is a number."""
        value = self.figures.get(metric) if self.status == "finished" else None
        number = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if number and value is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dictionaries, for JSON; `Entry(**values)` is the way back."""
        return asdict(self)


METRICS = (
    *(key_of(name, measure) for measure in ("bits", "accuracy") for name in SERIES),
    *(key_of(name, f"long_{measure}") for measure in ("bits", "accuracy") for name in SERIES),
    "drift",
    "drift_before_dmt",
    "drift_before_finetune",
    "parameters_rnn",
    "parameters_teacher",
    "tokens_per_s",
    "labels_per_s",
    "transitions_per_s",
    "wall_seconds",
)
"""Figures of a summary that trials can be ordered by."""


def higher_is_better(metric: str) -> bool:
    """Return whether the best trial has the highest value of a figure, not the lowest."""
    return "accuracy" in metric or metric.endswith("_per_s")


def ranked(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Return the trials, the best first; those without the figure follow in their own order."""
    sign = -1 if higher_is_better(metric) else 1
    scores = {entry.id: entry.score(metric) for entry in entries}

    def place(entry: Entry) -> tuple[bool, float]:
        score = scores[entry.id]
        return score is None, 0.0 if score is None else sign * score

    return sorted(entries, key=place)


def best(entries: Sequence[Entry], metric: str) -> Entry | None:
    """Return the best trial, None if none has the figure."""
    first = next(iter(ranked(entries, metric)), None)
    return first if first and first.score(metric) is not None else None
