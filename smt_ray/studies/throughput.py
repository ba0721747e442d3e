"""How fast each stage runs on how many workers or gangs, measured by the stages' own code.

Training is measured in short runs of the training loop, labelling in short runs of the label
pipeline, each in a place of its own. Weak scaling gives each worker the same share (the global
batch grows with the workers), strong scaling keeps the global batch.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import ray
from safetensors.torch import save

from smt_ray.config import Precision, RunConfig, TrainConfig
from smt_ray.data.shards import DTYPES
from smt_ray.data.storage import Location
from smt_ray.distributed.labels import SHARD_BYTES, write_labels
from smt_ray.distributed.loop import Program
from smt_ray.distributed.metrics import Row, read_metrics
from smt_ray.distributed.programs import (
    BpttProgram,
    DmtProgram,
    TeacherProgram,
    TransitionProgram,
)
from smt_ray.distributed.session import connect, preflight
from smt_ray.distributed.trainer import fit
from smt_ray.pipeline import Stages
from smt_ray.studies.flops import networks, sequence_flops, validation_flops
from smt_ray.studies.peak import matmul_rate
from smt_ray.studies.points import kept, settings_of
from smt_ray.studies.space import nested

INTERVALS = 8
"""Rows of metrics of one measurement."""
WARM_UP = 2
"""Rows at its beginning that do not count."""
ORDER = ("teacher", "labels", "transition", "dmt", "finetune", "bptt")
"""Stages that take time for every token."""
BLOCKS = 3
"""Blocks of label rows that each gang makes, at least: they are dealt out whole."""


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
    parameters: int = 0
    """Weights that are trained, of `labels` those of the encoder."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A measurement to make: which stage, under which settings."""

    stage: str
    scaling: str
    count: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of the point."""
        return f"{self.stage}-{self.scaling}-{self.count}"


def plans(
    config: RunConfig, workers: Sequence[int], gangs: Sequence[int], steps: int
) -> list[Plan]:
    """Return the measurements of a study.

    Args:
        config: the run that is scaled.
        workers: numbers of training workers.
        gangs: numbers of encoder gangs.
        steps: optimizer steps of one measurement.

    Raises:
        ValueError: naming the field, where workers cannot share a global batch.
    """
    found = []
    for key, train in config.stages().items():
        stage = key.partition(".")[0]
        if stage == "finetune":  # the same work as `bptt`
            continue
        for count in workers:
            scalings = {"base": 1} if count == min(workers) else {"weak": count, "strong": 1}
            for scaling, factor in scalings.items():
                short = _short(config, key, train, steps, count, factor)
                found.append(Plan(stage=stage, scaling=scaling, count=count, config=short))
    for count in gangs:
        scaling = "base" if count == min(gangs) else "weak"
        few = config.update({"runtime": {"workers": 1, "gangs": count}})
        found.append(Plan(stage="labels", scaling=scaling, count=count, config=few))
    return sorted(found, key=lambda plan: ORDER.index(plan.stage))


def _short(
    config: RunConfig, key: str, train: TrainConfig, steps: int, workers: int, factor: int
) -> RunConfig:
    """Return a run whose stage `key` takes a few steps on a `factor` times larger batch."""
    stage = {
        "steps": steps,
        "global_batch": train.global_batch * factor,
        "validate_every": steps,
        "validation_batches": 1,
    }
    every = max(1, steps // INTERVALS)
    runtime = {"workers": workers, "checkpoint_every": steps, "log_every": every}
    # The other stages are not run, but their batches must be right for so many workers.
    others = {
        f"{name}.global_batch": other.global_batch * factor
        for name, other in config.stages().items()
        if name != key
    }
    return config.update(
        nested({f"{key}.{name}": value for name, value in stage.items()} | others)
        | {"runtime": runtime}
    )


class Throughput:
    """Measures the points of a study that are not there yet."""

    def __init__(self, config: RunConfig, directory: Location, found: Sequence[Plan], steps: int):
        """Prepare to measure.

        Args:
            config: the run that is scaled.
            directory: the study's; points are kept in it, and what they write for a while.
            found: the measurements.
            steps: optimizer steps of one.
        """
        self.config, self.directory, self.plans, self.steps = config, directory, found, steps
        self.scratch = directory / "scratch"

    def points(self) -> list[Point]:
        """Return all points in order, made now where they are missing."""
        points = list(self._points())
        self.scratch.delete_dir()
        return points

    def _points(self) -> Iterator[Point]:
        for plan in self.plans:
            settings = settings_of(plan.config) | {"steps": self.steps, "stage": plan.stage}
            make = self._labels if plan.stage == "labels" else self._training
            row = kept(
                self.directory / "points",
                plan.name,
                settings,
                lambda plan=plan, make=make: asdict(make(plan)),  # type: ignore[misc]
            )
            # Base of one study, weak of another: where it stands is not a part of the point.
            yield Point(**row | {"scaling": plan.scaling})

    @cached_property
    def stages(self) -> Stages:
        """The session, and the token shards, which real runs share."""
        runtime = replace(
            self.config.runtime,
            workers=max(plan.config.runtime.workers for plan in self.plans),
            gangs=max(plan.config.runtime.gangs for plan in self.plans),
        )
        widest = max(self.plans, key=lambda plan: plan.config.runtime.workers).config
        widest = replace(widest, runtime=runtime)
        connect(runtime)
        preflight(widest)
        stages = Stages(self.config, Location.of(self.config.storage))
        stages.tokens()
        counts = stages.made["tokens"].figures["sequences"]
        for plan in self.plans:
            batch = _batch(plan)
            if plan.stage != "labels" and min(counts.values()) < batch:
                raise ValueError(
                    f"workers={plan.count}: {plan.stage} would take {batch} sequences a step, "
                    f"data.source={self.config.data.source} has {min(counts.values())} for "
                    "validation; lower workers or its global-batch"
                )
        return stages

    @property
    def vocabulary(self) -> int:
        """V of the token shards."""
        return self.stages.vocabulary

    @cached_property
    def teacher(self) -> Location:
        """A teacher with fresh weights: what they are changes no time."""
        tokens = self.stages.made["tokens"].location
        return self._fresh(TeacherProgram(self.config, tokens, self.vocabulary))

    @cached_property
    def transition(self) -> Location:
        """A cell with fresh weights."""
        return self._fresh(self._program("transition", self.config))

    def _fresh(self, program: Program) -> Location:
        place = (self.scratch / f"fresh-{program.stage}").make_dir()
        ray.get(ray.remote(num_cpus=1)(_write_fresh).remote(program, place))
        return place

    @cached_property
    def labels(self) -> Location:
        """Labels enough for every training measurement."""
        most = max(_batch(plan) for plan in self.plans if plan.stage != "labels")
        counts = self.stages.made["tokens"].figures["sequences"]
        enough = (most + 4 * most**0.5 + 4) / min(counts.values())  # a hash chooses: 4 sigma
        place = self.scratch / "labels"
        self._write_labels(self.config, enough, place)
        return place

    def _write_labels(self, config: RunConfig, fraction: float, place: Location) -> dict[str, Any]:
        counts = self.stages.made["tokens"].figures["sequences"]
        fraction = max(fraction, 9 / min(counts.values()))  # a hash chooses: one at least
        one = {"train": {"global_batch": 1}}  # no training is to come that could ask for more
        few = config.update(
            {
                "labels": {"fraction": min(1.0, fraction)},
                "transition": one,
                "dmt": one,
                "runtime": {"workers": 1},
            }
        )
        tokens = self.stages.made["tokens"].location
        return write_labels(few, tokens, self.teacher, "study", self.vocabulary, place)

    def _program(self, stage: str, config: RunConfig) -> Program:
        tokens = self.stages.made["tokens"].location
        if stage == "teacher":
            return TeacherProgram(config, tokens, self.vocabulary)
        if stage == "bptt":
            return BpttProgram(config, tokens, self.vocabulary)
        if stage == "transition":
            return TransitionProgram(config, self.labels, {}, self.teacher, self.vocabulary)
        return DmtProgram(config, self.labels, {}, self.teacher, self.transition, self.vocabulary)

    def _training(self, plan: Plan) -> Point:
        """Measure a trained stage."""
        config, count = plan.config, plan.count
        program = self._program(plan.stage, config)
        train, length = program.train, config.data.sequence_length
        place = self.scratch / plan.name
        place.delete_dir()
        began = time.monotonic()
        fit(program, config.runtime, place.make_dir(), traced_steps=config.runtime.log_every)
        seconds = time.monotonic() - began
        times = training_times(read_metrics(place))
        place.delete_dir()
        share = train.global_batch / count
        busy = self.steps * times["step_s"] + times.pop("rest_s")
        return Point(
            stage=plan.stage,
            scaling=plan.scaling,
            count=count,
            processes=count,
            batch=train.global_batch,
            per_s=train.global_batch * length / times["step_s"],
            step_flops=share * sequence_flops(config, self.vocabulary)[plan.stage],
            peak_flops_per_s=self._peak(train.precision),
            startup_s=max(0.0, seconds - busy),
            checkpoint_every=self.config.runtime.checkpoint_every,
            validation_flops=share * validation_flops(config, self.vocabulary)[plan.stage],
            parameters=networks(config, self.vocabulary).parameters[plan.stage],
            **times,
        )

    def _labels(self, plan: Plan) -> Point:
        """Measure the label pipeline."""
        config, count = plan.config, plan.count
        model, runtime = config.model, config.runtime
        row_bytes = model.memory_tokens * model.width * DTYPES[config.labels.dtype].itemsize
        block = SHARD_BYTES // (row_bytes * config.data.sequence_length * runtime.gang_batch)
        batches = max(self.steps // 4, BLOCKS * max(1, block))
        rows = count * batches * runtime.gang_batch
        place = self.scratch / plan.name
        place.delete_dir()
        train = self.stages.made["tokens"].figures["sequences"]["train"]
        figures = self._write_labels(config, rows / train, place)
        place.delete_dir()
        rate = figures["labels_per_s"]
        ranks, length = runtime.gang_ranks, config.data.sequence_length
        flops = sequence_flops(config, self.vocabulary)["labels"]
        return Point(
            stage="labels",
            scaling=plan.scaling,
            count=count,
            processes=ranks,
            batch=runtime.gang_batch,
            per_s=rate,
            step_s=runtime.gang_batch * length * count / rate,
            step_flops=runtime.gang_batch / ranks * flops,
            peak_flops_per_s=self._peak(config.teacher.precision),
            startup_s=max(0.0, figures["seconds"] - figures["labels"] / rate),
            parameters=networks(config, self.vocabulary).parameters["labels"],
        )

    def _peak(self, precision: Precision) -> float:
        """Return the FLOP/s of a large matrix product in one process."""
        runtime = self.config.runtime
        settings = {"gpu": runtime.gpu, "threads": runtime.threads, "precision": precision}
        row = kept(
            self.directory / "points",
            f"peak-{precision}",
            settings,
            lambda: {"flops_per_s": matmul_rate(runtime, precision)},
        )
        return row["flops_per_s"]


def _batch(plan: Plan) -> int:
    key = plan.stage if plan.stage == "teacher" else f"{plan.stage}.train"
    return plan.config.stages()[key].global_batch if plan.stage != "labels" else 0


def _write_fresh(program: Program, place: Location) -> None:
    (place / "model.safetensors").write_bytes(save(program.objective().state_dict()))


def training_times(rows: Sequence[Row]) -> dict[str, float]:
    """Return a short run's times in the steady state, from its rows of metrics.

    The first rows pay for the warm-up, and the last one for the trace of the collectives.

    Returns:
        Fields of `Point`; `rest_s` is what all validations and checkpoints took.
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
        "collectives_s": steps[-1]["time/collectives_s"],
        **{name: times[-1] for name, times in beside.items()},
        "rest_s": sum(map(sum, beside.values())),
    }


def throughput_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return what the points say: efficiency against the base, fraction of the peak, shares.

    Shares of the time between validations sum to 1: `compute` is what is left.
    """
    rows = []
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
