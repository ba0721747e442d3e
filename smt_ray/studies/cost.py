"""What a run would take and cost, on paper: hours, dollars, label and network bytes by stage.

A stage's time is linear: so many steps of so many seconds, and validations and checkpoints, with
the start-up kept apart. Seconds of a step are a line in the FLOPs of one process, through what was
measured; so a plan may have other sizes, other tokens and other workers than the measurements, but
should be run on the machine that they were made on.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from smt_ray.config import RunConfig, TrainConfig
from smt_ray.pipeline.planning import label_bytes
from smt_ray.studies.flops import networks, sequence_flops, validation_flops
from smt_ray.studies.measurements import ORDER, Point
from smt_ray.studies.scenario import Scenario

TOKEN_BYTES = 4
"""Bytes of a token in a shard, before compression."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a step: `fixed_s + s_per_flop * FLOPs of one process`."""

    fixed_s: float
    s_per_flop: float

    def seconds(self, flops: float) -> float:
        """Return the seconds of a step."""
        return self.fixed_s + self.s_per_flop * flops


def fit_line(steps: Sequence[tuple[float, float]]) -> Line:
    """Fit a line of non-negative coefficients to (FLOPs, seconds), by least relative squares.

    Measurements at one size alone cannot tell the two parts apart: then all time is per FLOP.
    """
    flops, seconds = np.array(steps).T
    if np.ptp(flops) < 0.01 * flops.max():
        return Line(0.0, float((seconds / flops).mean()))
    scale = flops.max()  # both columns of one size
    terms = np.stack((np.ones_like(flops), flops / scale), axis=1) / seconds[:, None]
    (fixed, slope), _ = nnls(terms, np.ones_like(seconds))
    return Line(float(fixed), float(slope / scale))


@dataclass(frozen=True)
class Stage:
    """What the measurements of one stage say."""

    line: Line
    efficiency: float
    """Of the most workers or gangs that were measured under weak scaling; 1 if it was one."""
    startup_s: float
    """Median."""
    validation_s_per_flop: float
    checkpoint_s: float
    """Of the most weights, with their number."""
    parameters: int


def stages_of(points: Iterable[Point]) -> dict[str, Stage]:
    """Return what points, of one study or of several, say about each stage."""
    by_stage: dict[str, list[Point]] = {}
    for point in points:
        by_stage.setdefault(point.stage, []).append(point)
    return {stage: _stage(found) for stage, found in by_stage.items()}


def _stage(points: Sequence[Point]) -> Stage:
    base = [point for point in points if point.scaling == "base"]  # repeats among them
    largest = max(base, key=lambda point: point.parameters)
    weak = [point for point in points if point.scaling == "weak"]
    efficiency = 1.0
    if weak:
        most = max(weak, key=lambda point: point.count)
        start = min(base, key=lambda point: abs(point.step_flops - most.step_flops))
        efficiency = start.step_s / most.step_s
    validated = [point.validation_s / point.validation_flops for point in base
                 if point.validation_flops]  # fmt: skip
    return Stage(
        line=fit_line([(point.step_flops, point.step_s) for point in base]),
        efficiency=efficiency,
        startup_s=float(np.median([point.startup_s for point in base])),
        validation_s_per_flop=float(np.mean(validated)) if validated else 0.0,
        checkpoint_s=largest.checkpoint_s,
        parameters=largest.parameters,
    )


def assumed(flops_per_s: float) -> dict[str, Stage]:
    """Return stages of which nothing is known but the FLOP/s that a process reaches."""
    line = Line(0.0, 1 / flops_per_s)
    return dict.fromkeys(ORDER, Stage(line, 1.0, 0.0, line.s_per_flop, 0.0, 1))


def cost(scenario: Scenario, stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """Return one row a stage, and a last one with their sums.

    `seconds` are those without the start-up. `collective_bytes` are what all processes send in
    ring collectives, `storage_bytes` what is read from and written to the storage; both go over the
    network where the processes and the storage are apart.

    Raises:
        ValueError: naming a stage that was not measured, or a batch smaller than the workers.
    """
    rows = [_labels(scenario, _known(stages, "labels"))]
    for key, train in scenario.run.stages().items():
        stage = key.partition(".")[0]
        measured = "bptt" if stage == "finetune" else stage
        rows.append(_trained(scenario, stage, train, _known(stages, measured)))
    rows.sort(key=lambda row: ORDER.index(row["stage"]))
    summed = ("steps", "flops", "seconds", "startup_s", "hours", "dollars", "label_bytes",
              "storage_bytes", "collective_bytes")  # fmt: skip
    total = dict.fromkeys(rows[0]) | {"stage": "all", "tokens": scenario.tokens}
    return [*rows, total | {name: sum(row[name] for row in rows) for name in summed}]


def _known(stages: Mapping[str, Stage], name: str) -> Stage:
    if name not in stages:
        raise ValueError(f"cost: stage {name} was not measured; measure a study with it first")
    return stages[name]


def _row(
    scenario: Scenario, stage: str, processes: int, price: float, seconds: float, **more: float
) -> dict[str, Any]:
    hours = (seconds + more["startup_s"]) / 3600
    return {
        "stage": stage,
        "tokens": scenario.tokens,
        "processes": processes,
        "steps": more["steps"],
        "flops": more["flops"],
        "seconds": seconds,
        "startup_s": more["startup_s"],
        "hours": hours,
        "dollars": hours * processes * price,
        "label_bytes": more.get("label_bytes", 0),
        "storage_bytes": more["storage_bytes"],
        "collective_bytes": more["collective_bytes"],
    }


def _efficiency(scenario: Scenario, stage: Stage, count: int) -> float:
    if count == 1:
        return 1.0
    return stage.efficiency if scenario.efficiency is None else scenario.efficiency


def _trained(scenario: Scenario, name: str, train: TrainConfig, stage: Stage) -> dict[str, Any]:
    run, workers = scenario.run, scenario.workers
    length, batch = run.data.sequence_length, train.global_batch
    if batch < workers:
        raise ValueError(
            f"workers={workers}: {name} has a global-batch of {batch} sequences, fewer than one a "
            "worker; raise it in the plan's config"
        )
    on_labels = name in {"transition", "dmt"}
    share = run.labels.fraction if on_labels else 1.0
    tokens = scenario.tokens * share * scenario.passes.get(name, 1.0)
    steps = math.ceil(tokens / (batch * length))
    flops = batch * sequence_flops(run, scenario.vocabulary)[name]
    parameters = networks(run, scenario.vocabulary).parameters[name]
    efficiency = _efficiency(scenario, stage, workers)
    group = run.group if name == "teacher" else 1
    validations = 1 + math.ceil(steps / train.validate_every)
    every = run.runtime.checkpoint_every
    checkpoints = validations + steps // every - steps // math.lcm(every, train.validate_every)
    validation_flops_ = batch * validation_flops(run, scenario.vocabulary)[name] / workers
    seconds = (
        steps * stage.line.seconds(flops / workers) / efficiency
        + validations
        * train.validation_batches
        * validation_flops_
        * stage.validation_s_per_flop
        / efficiency
        + checkpoints * stage.checkpoint_s * max(1.0, parameters / stage.parameters)
    )
    visits = 1.0
    if name in {"dmt", "finetune", "bptt"}:
        how = run.dmt if name == "dmt" else run.unroll
        visits = how.visits if how.mode == "parallel" else 1.0
    read = (TOKEN_BYTES + (_label_bytes_of_one(run) if on_labels else 0)) * tokens / visits
    return _row(
        scenario,
        name,
        workers,
        scenario.worker_price,
        seconds,
        steps=steps,
        flops=steps * flops,
        startup_s=stage.startup_s,
        storage_bytes=read,
        collective_bytes=steps * _step_bytes(run, train, parameters, workers, group),
    )


def _step_bytes(
    run: RunConfig, train: TrainConfig, parameters: int, workers: int, group: int
) -> float:
    """Return what all workers send for one optimizer step.

    Gradients are reduced (one pass of the ring) and what comes of them is gathered (another); ZeRO
    3 gathers the weights for each forward and each backward pass instead.
    """
    runtime = run.runtime
    short = train.precision == "bfloat16" and runtime.zero_stage > 0
    once = (workers - 1) * parameters * (2 if short else 4)
    if runtime.zero_stage < 3:
        return 2 * once
    return once * (1 + 2 * runtime.pieces(train.global_batch, workers, group))


def _labels(scenario: Scenario, stage: Stage) -> dict[str, Any]:
    run, gangs, runtime = scenario.run, scenario.gangs, scenario.run.runtime
    length = run.data.sequence_length
    labelled = scenario.tokens * run.labels.fraction
    batches = math.ceil(labelled / (runtime.gang_batch * length))
    flops = runtime.gang_batch * sequence_flops(run, scenario.vocabulary)["labels"]
    parameters = networks(run, scenario.vocabulary).parameters["labels"]
    step_s = stage.line.seconds(flops / runtime.rank_count)
    seconds = batches * step_s / gangs / _efficiency(scenario, stage, gangs)
    size = label_bytes(run, int(scenario.tokens))
    weight = 2 if run.optimizer.precision == "bfloat16" else 4
    return _row(
        scenario,
        "labels",
        gangs * runtime.rank_count,
        scenario.rank_price,
        seconds,
        steps=batches,
        flops=batches * flops,
        startup_s=stage.startup_s,
        label_bytes=size,
        storage_bytes=2 * TOKEN_BYTES * labelled + size,
        collective_bytes=batches * (runtime.rank_count - 1) * parameters * weight,
    )


def _label_bytes_of_one(run: RunConfig) -> float:
    return label_bytes(run, 10**6) / 10**6 / run.labels.fraction
