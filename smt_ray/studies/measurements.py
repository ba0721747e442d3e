"""What a study of throughput measures: short runs to make, and the points that come of them.

Weak scaling gives each worker the same share (the global batch grows with the workers), strong
scaling keeps the global batch.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from smt_ray.config import RunConfig, TrainConfig
from smt_ray.studies.space import nested
from smt_ray.train.metrics import Row

INTERVALS = 8
"""Rows of metrics of one measurement."""
WARM_UP = 2
"""Rows at its beginning that do not count."""
ORDER = ("teacher", "labels", "transition", "dmt", "finetune", "bptt")
"""Stages that take time for every token."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement. A step is an optimizer step, of `labels` a batch of one gang."""

    stage: str
    scaling: str
    """`base` for the fewest workers or gangs, else `weak` or `strong`."""
    count: int
    """Training workers, of `labels` encoder gangs."""
    processes: int
    """Processes that share one step."""
    batch: int
    """Sequences in a step."""
    per_s: float
    """Tokens, labels or transitions per second, over all workers or gangs."""
    step_s: float
    """Seconds of a step."""
    step_flops: float
    """FLOPs of a step in one process."""
    peak_flops_per_s: float
    """FLOP/s that one process reaches in a large matrix product."""
    startup_s: float
    """Seconds of the run beside its steps, validations and checkpoints: before, after, warm-up."""
    data_s: float = 0.0
    """Seconds of a step that rank 0 waits for its batch."""
    collectives_s: float = 0.0
    """Seconds of a step inside collectives, waiting for slower ranks among them."""
    checkpoint_s: float = 0.0
    """Seconds of one checkpoint."""
    checkpoint_every: int = 1
    """Steps from checkpoint to checkpoint in a run with these settings."""
    validation_s: float = 0.0
    """Seconds of one global batch of validation."""
    validation_flops: float = 0.0
    """FLOPs of it in one process."""
    tokens: int
    """Tokens, labels or transitions of the whole run."""
    seconds: float
    """Seconds of the whole run at its mean speed in the steady state, start-up apart."""
    parameters: int = 0
    """Weights that are trained, of `labels` those of the encoder."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement to make: which stage, under which settings."""

    stage: str
    scaling: str
    count: int
    config: RunConfig
    repeat: int = 0

    @property
    def name(self) -> str:
        """Name of the point."""
        again = f"-again{self.repeat}" if self.repeat else ""
        return f"{self.stage}-{self.scaling}-{self.count}{again}"


def measurements(
    config: RunConfig,
    workers: Sequence[int],
    gangs: Sequence[int],
    steps: int,
    repeats: int = 1,
) -> list[Measurement]:
    """Return the measurements of a study, stage by stage, in turns where they are repeated.

    Args:
        config: the run that is scaled.
        workers: numbers of training workers.
        gangs: numbers of encoder gangs.
        steps: optimizer steps of one measurement.
        repeats: how often each is made.

    Raises:
        ValueError: naming the field, where workers cannot share a global batch.
    """
    found = []
    for stage, train in config.stages().items():
        if stage == "finetune":  # the same work as `bptt`
            continue
        for count in workers:
            scalings = {"base": 1} if count == min(workers) else {"weak": count, "strong": 1}
            for scaling, factor in scalings.items():
                short = _short(config, stage, train, steps, count, factor)
                found.append(Measurement(stage=stage, scaling=scaling, count=count, config=short))
    for count in gangs:
        scaling = "base" if count == min(gangs) else "weak"
        few = config.update({"runtime": {"workers": 1, "gangs": count}})
        found.append(Measurement(stage="labels", scaling=scaling, count=count, config=few))
    turns = [replace(one, repeat=repeat) for repeat in range(repeats) for one in found]
    return sorted(turns, key=lambda one: ORDER.index(one.stage))


def _short(
    config: RunConfig, stage: str, train: TrainConfig, steps: int, workers: int, factor: int
) -> RunConfig:
    """Return a run whose `stage` takes a few steps on a `factor` times larger batch."""
    batch, every = train.global_batch * factor, max(1, steps // INTERVALS)
    # The other stages are not run, but their batches must be right for so many workers.
    batches = {
        f"{name}.global_batch": other.global_batch * factor
        for name, other in config.stages().items()
    }
    return config.update(
        nested({f"{stage}.steps": steps, **batches})
        | {
            "optimizer": {"validate_every": steps, "validation_sequences": batch},
            "runtime": {"workers": workers, "checkpoint_every": steps, "log_every": every},
        }
    )


def training_times(rows: Sequence[Row]) -> dict[str, float]:
    """Return a short run's times in the steady state, from its rows of metrics.

    The first rows pay for the warm-up, and the last one for the trace of the collectives.

    Returns:
        Fields of `Point`; `mean_s` of a step, `step_s` being its median; `rest_s` is what all
        validations and checkpoints took.
    """
    steps = [row for row in rows if "time/step_s" in row]
    steady = steps[min(WARM_UP, len(steps) - 2) : -1]
    beside = {
        name: [row[f"time/{name}"] for row in rows if f"time/{name}" in row]
        for name in ("validation_s", "checkpoint_s")
    }
    return {
        **{
            name: statistics.median(row[f"time/{name}"] for row in steady)
            for name in ("step_s", "data_s")
        },
        "mean_s": statistics.fmean(row["time/step_s"] for row in steady),
        "collectives_s": steps[-1]["time/collectives_s"],
        **{name: times[-1] for name, times in beside.items()},
        "rest_s": sum(map(sum, beside.values())),
    }


def medians(points: Sequence[Point]) -> list[Point]:
    """Return one point of each that was repeated: that of the median rate."""
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.stage, point.scaling, point.count), []).append(point)
    return [sorted(found, key=lambda p: p.per_s)[len(found) // 2] for found in groups.values()]


def throughput_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return what the points say: efficiency against the base, fraction of the peak, shares.

    Shares of the time between validations sum to 1: `compute` is what is left.
    """
    rows = []
    points = medians(points)
    for point in points:
        base = next(p for p in points if p.stage == point.stage and p.scaling == "base")
        step = point.step_s + point.checkpoint_s / point.checkpoint_every
        shares = {
            "data": point.data_s / step,
            "collectives": min(point.collectives_s, point.step_s - point.data_s) / step,
            "checkpoint": point.checkpoint_s / point.checkpoint_every / step,
        }
        shares = {"compute": 1 - sum(shares.values()), **shares}
        measured = point.stage != "labels"
        rows.append(
            {
                "stage": point.stage,
                "scaling": point.scaling,
                "count": point.count,
                "of": "workers" if measured else "gangs",
                "batch": point.batch,
                "per_s": point.per_s,
                "efficiency": (point.per_s / point.count) / (base.per_s / base.count),
                "step_s": point.step_s,
                "flops_per_s": point.step_flops / point.step_s,
                "mfu": point.step_flops / point.step_s / point.peak_flops_per_s,
                **{f"share_{name}": share if measured else None for name, share in shares.items()},
                "startup_s": point.startup_s,
            }
        )
    return rows
