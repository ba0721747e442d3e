"""How good runs of other sizes are: the pipeline over axes of settings, laws through the scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.pipeline.run import run
from smt_ray.studies.flops import networks, sequence_flops
from smt_ray.studies.points import Row, kept
from smt_ray.studies.power_law import LEVEL, PowerLaw, fit_power_law
from smt_ray.studies.space import Choice, Fields, grid, nested, written

MEASURES = ("teacher_bits", "rnn_bits", "bptt_bits")
QUANTITIES = {
    "parameters": "parameters of the model",
    "context": "context L",
    "memory": "memory K * D",
    "tokens": "teacher's training tokens",
    "flops": "FLOPs of training",
}
"""What losses are set against."""
TARGETS = (0.75, 0.5, 0.25)
"""Quantiles of the RNNs' losses that are asked for where no target is given."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of the study."""

    fields: Fields
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of its point."""
        label = written(self.fields).replace("/", "-").replace(", ", "+").replace("=", "-")
        return f"quality-{label}"


def trials(config: RunConfig, axes: Sequence[Choice], *, product: bool) -> list[Variant]:
    """Return the runs of a study: along each axis from `config`, or all combinations.

    Raises:
        ValueError: if a value does not go with the rest of the run.
    """
    if product:
        combinations = list(grid(tuple(axes)))
    else:
        combinations = [{axis.field: value} for axis in axes for value in axis.values]
    found: dict[str, Variant] = {}
    for fields in combinations:
        try:
            changed = config.update(nested(fields))
        except ValueError as error:
            raise ValueError(f"quality={written(fields)}: {error}") from error
        trial = Variant(fields, changed)
        name = f"{config.name}.{trial.name.removeprefix('quality-')}"
        # Two axes may come to the same run: it is made once.
        found.setdefault(str(changed), replace(trial, config=replace(changed, name=name)))
    return list(found.values())


def quality_rows(found: Sequence[Variant], directory: Location, *, overwrite: bool) -> list[Row]:
    """Return one row a run, made now where it is missing; its point is kept in `directory`."""
    return [
        kept(
            directory / "points",
            trial.name,
            {k: v for k, v in trial.config.to_dict().items() if k not in {"storage", "runtime"}},
            lambda trial=trial: _row(trial, run(trial.config, overwrite=overwrite)),  # type: ignore[misc]
            f"{turn} of {len(found)}",
        )
        for turn, trial in enumerate(found, start=1)
    ]


def _row(trial: Variant, summary: dict[str, Any]) -> Row:
    config, directory = trial.config, Location.of(trial.config.storage)
    tokens = (directory / config.name / "artifacts.json").read_json()["tokens"]
    vocabulary = (directory / "artifacts" / tokens / "manifest.json").read_json()["figures"][
        "vocabulary"
    ]
    flops = training_flops(config, vocabulary, summary["labels"])
    model, length = config.model, config.data.sequence_length
    return {
        "run": config.name,
        "fields": trial.fields,
        "parameters": summary["parameters_rnn"],
        "parameters_teacher": networks(config, vocabulary).parameters["teacher"],
        "context": length,
        "memory": model.memory_tokens * model.width,
        "tokens": config.teacher.steps * config.teacher.global_batch * length,
        "flops": sum(value for stage, value in flops.items() if stage != "bptt"),
        "bptt_flops": flops.get("bptt"),
        "unit": summary["unit"],
        **{name: summary[name] for name in MEASURES},
    }


def training_flops(config: RunConfig, vocabulary: int, labels: int) -> dict[str, float]:
    """Return the FLOPs of each stage of a run that made so many labels."""
    each = sequence_flops(config, vocabulary)
    sequences = {
        stage: train.steps * train.global_batch for stage, train in config.stages().items()
    }
    sequences["labels"] = labels // config.data.sequence_length
    return {stage: count * each[stage] for stage, count in sequences.items()}


def quantity(field: str) -> str:
    """Return the quantity that a field varies."""
    if field == "data.sequence-length":
        return "context"
    if field == "model.memory-tokens":
        return "memory"
    if field in {"teacher.steps", "teacher.global-batch"}:
        return "tokens"
    shapes = field.startswith("model.") or field.startswith("transition.cell")
    return "parameters" if shapes else "flops"


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses of one measure along one axis, with all else equal; or the best for their FLOPs."""

    field: str
    given: str
    """The other fields' values; empty where they are the study's own."""
    quantity: str
    measure: str
    x: tuple[float, ...]
    loss: tuple[float, ...]
    law: PowerLaw | None

    def row(self) -> Row:
        """Return it as a row of the table of laws."""
        law = self.law
        row: Row = {
            "measure": self.measure,
            "against": self.quantity,
            "field": self.field,
            "given": self.given,
            "points": len(self.x),
            "form": law.form if law else "",
        }
        for name in ("a", "b", "c"):
            interval = getattr(law, f"{name}_interval") if law else (None, None)
            row[name] = getattr(law, name) if law else None
            row[f"{name}_low"], row[f"{name}_high"] = interval
        return row | {"confidence": LEVEL}


def curves(rows: Sequence[Row], axes: Sequence[Choice], config: RunConfig) -> list[Curve]:
    """Return the curves of a study's rows, with the laws that fit them.

    Args:
        rows: one a run.
        axes: the fields that were varied, each with its values.
        config: the run whose values the other fields have where a row does not say.
    """
    found = []
    own = {axis.field: _leaf(config, axis.field) for axis in axes}
    full = [(own | row["fields"], row) for row in rows]
    for axis in axes:
        others: dict[str, list[tuple[Fields, Row]]] = {}
        for fields, row in full:
            rest = {name: value for name, value in fields.items() if name != axis.field}
            given = "" if all(own[name] == value for name, value in rest.items()) else written(rest)
            others.setdefault(given, []).append((fields, row))
        against = quantity(axis.field)
        for given, group in others.items():
            for measure in MEASURES:
                points = sorted(
                    (row[_against(against, measure)], row[measure])
                    for _, row in group
                    if row[measure] is not None
                )
                if len({x for x, _ in points}) > 1:
                    found.append(_curve(axis.field, given, against, measure, points))
    for measure in MEASURES:
        best = _best(rows, measure)
        if len(best) > 1:
            found.append(_curve("best of all runs", "", "flops", measure, best))
    return found


def _leaf(config: RunConfig, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name.replace("-", "_"))
    return value


def _against(quantity: str, measure: str) -> str:
    """Return the column: a teacher's own parameters, and what BPTT itself spent."""
    if quantity == "parameters" and measure == "teacher_bits":
        return "parameters_teacher"
    return "bptt_flops" if quantity == "flops" and measure == "bptt_bits" else quantity


def _curve(
    field: str, given: str, against: str, measure: str, points: Sequence[tuple[float, float]]
) -> Curve:
    x, loss = zip(*points, strict=True)
    return Curve(field, given, against, measure, x, loss, fit_power_law(x, loss))


def _best(rows: Sequence[Row], measure: str) -> list[tuple[float, float]]:
    """Return the runs that are better than all cheaper ones, as (FLOPs, loss)."""
    column = _against("flops", measure)
    found: list[tuple[float, float]] = []
    for row in sorted((row for row in rows if row[measure] is not None), key=lambda r: r[column]):
        if not found or row[measure] < found[-1][1]:
            found.append((row[column], row[measure]))
    return found


def compression_rows(rows: Sequence[Row], targets: Sequence[float] = ()) -> list[Row]:
    """Return, for each target loss, the smallest memory K * D that reaches it for its FLOPs.

    More FLOPs are worth a row only where they reach the target with less memory. Without `targets`
    they are quantiles of the RNNs' losses.
    """
    if len(rows) < 2:
        return []
    losses = sorted(row["rnn_bits"] for row in rows)
    asked = targets or sorted({losses[round(q * (len(losses) - 1))] for q in TARGETS}, reverse=True)
    found = []
    for target in asked:
        smallest = None
        for row in sorted(rows, key=lambda row: (row["flops"], row["memory"])):
            less = smallest is None or row["memory"] < smallest
            if row["rnn_bits"] <= target and less:
                smallest = row["memory"]
                found.append(
                    {"target_bits": target, **{k: row[k] for k in ("memory", "flops", "rnn_bits",
                                                                   "run")}}
                )  # fmt: skip
    return found
