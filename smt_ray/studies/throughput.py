"""How fast each stage runs on how many workers or gangs, measured by the stages' own code.

Training is measured in short runs of the training loop, labelling in short runs of the label
pipeline, each in a place of its own.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import ray

from smt_ray.cluster.resources import resolved, there
from smt_ray.cluster.session import connect, preflight
from smt_ray.config import Precision, RunConfig
from smt_ray.data.storage import Location
from smt_ray.data.weights import write_weights
from smt_ray.labels.factory import write_labels
from smt_ray.pipeline.building import Stages
from smt_ray.pipeline.run import Run
from smt_ray.studies.flops import networks, sequence_flops, validation_flops
from smt_ray.studies.measurements import Measurement, Point, training_times
from smt_ray.studies.peak import matmul_rate
from smt_ray.studies.points import kept, settings_of
from smt_ray.train.loop import Program
from smt_ray.train.metrics import read_metrics
from smt_ray.train.programs import (
    BpttProgram,
    DmtProgram,
    StoredLabels,
    TeacherProgram,
    TransitionProgram,
)
from smt_ray.train.trainer import fit

BATCHES = 4
"""Batches that each gang encodes, at least."""


class Throughput:
    """Measures the points of a study that are not there yet."""

    def __init__(
        self, config: RunConfig, directory: Location, planned: Sequence[Measurement], steps: int
    ) -> None:
        """Prepare to measure.

        Args:
            config: the run that is scaled.
            directory: the study's; points are kept in it, and what they write for a while.
            planned: the measurements.
            steps: optimizer steps of one.
        """
        self.config, self.directory, self.planned, self.steps = config, directory, planned, steps
        self.scratch = directory / "scratch"

    def points(self) -> list[Point]:
        """Return all points in order, made now where they are missing."""
        points = list(self._points())
        self.scratch.delete_dir()
        return points

    def _points(self) -> Iterator[Point]:
        for turn, plan in enumerate(self.planned, start=1):
            settings = settings_of(plan.config) | {"steps": self.steps, "stage": plan.stage}
            make = self._labels if plan.stage == "labels" else self._training
            row = kept(
                self.directory / "points",
                plan.name,
                settings,
                lambda plan=plan, make=make: asdict(make(plan)),  # type: ignore[misc]
                f"{turn} of {len(self.planned)}",
            )
            # Base of one study, weak of another: where it stands is not a part of the point.
            yield Point(**row | {"scaling": plan.scaling})

    @cached_property
    def widest(self) -> RunConfig:
        """The session: the run with the most workers and gangs, resolved for the cluster."""
        runtime = {
            "workers": max(plan.config.runtime.worker_count for plan in self.planned),
            "gangs": max(plan.config.runtime.gangs for plan in self.planned),
        }
        widest = max(self.planned, key=lambda plan: plan.config.runtime.worker_count).config
        found = connect(widest.update({"runtime": runtime}))
        preflight(found)
        return found

    def _resolved(self, config: RunConfig) -> RunConfig:
        """Return a run with the device and the gang ranks of all other points."""
        runtime = self.widest.runtime
        own = {"device": runtime.device, "gang_ranks": runtime.gang_ranks}
        return resolved(config.update({"runtime": own}), there())

    @cached_property
    def stages(self) -> Stages:
        """The token shards, which real runs share."""
        stages = Run.of(self._resolved(self.config)).stages()
        stages.tokens()
        counts = stages.made["tokens"].figures["sequences"]
        for plan in self.planned:
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
        location = (self.scratch / f"fresh-{program.stage}").make_dir()
        ray.get(ray.remote(num_cpus=1)(_write_fresh).remote(program, location))
        return location

    @cached_property
    def labels(self) -> Location:
        """Labels enough for every training measurement."""
        most = max(_batch(plan) for plan in self.planned if plan.stage != "labels")
        counts = self.stages.made["tokens"].figures["sequences"]
        enough = (most + 4 * most**0.5 + 4) / min(counts.values())  # a hash chooses: 4 sigma
        location = self.scratch / "labels"
        self._write_labels(self.config, enough, location)
        return location

    def _write_labels(
        self, config: RunConfig, fraction: float, location: Location
    ) -> dict[str, Any]:
        counts = self.stages.made["tokens"].figures["sequences"]
        fraction = max(fraction, 9 / min(counts.values()))  # a hash chooses: one at least
        one = {"global_batch": 1}  # no training is to come that could ask for more
        few = self._resolved(config).update(
            {
                "labels": {"fraction": min(1.0, fraction)},
                "transition": one,
                "dmt": one,
                "runtime": {"workers": 1},
            }
        )
        tokens = self.stages.made["tokens"].location
        return write_labels(few, tokens, self.teacher, "study", self.vocabulary, location)

    def _program(self, stage: str, config: RunConfig) -> Program:
        tokens = self.stages.made["tokens"].location
        if stage == "teacher":
            return TeacherProgram(config, tokens, self.vocabulary)
        if stage == "bptt":
            return BpttProgram(config, tokens, self.vocabulary)
        labels = StoredLabels(self.labels, {})
        if stage == "transition":
            return TransitionProgram(config, labels, self.teacher, self.vocabulary)
        return DmtProgram(config, labels, self.teacher, self.transition, self.vocabulary)

    def _training(self, plan: Measurement) -> Point:
        """Measure a trained stage."""
        config, count = self._resolved(plan.config), plan.count
        program = self._program(plan.stage, config)
        train, length = program.train, config.data.sequence_length
        location = self.scratch / plan.name
        location.delete_dir()
        began = time.monotonic()
        fit(program, config.runtime, location.make_dir(), traced_steps=config.runtime.log_every)
        seconds = time.monotonic() - began
        times = training_times(read_metrics(location))
        location.delete_dir()
        share = train.global_batch / count
        busy = self.steps * times.pop("mean_s") + times.pop("rest_s")
        return Point(
            stage=plan.stage,
            scaling=plan.scaling,
            count=count,
            processes=count,
            batch=train.global_batch,
            per_s=train.global_batch * length / times["step_s"],
            step_flops=share * sequence_flops(config, self.vocabulary)[plan.stage],
            peak_flops_per_s=self._peak(train.precision),
            tokens=self.steps * train.global_batch * length,
            seconds=busy,
            startup_s=max(0.0, seconds - busy),
            checkpoint_every=self.config.runtime.checkpoint_every,
            validation_flops=share * validation_flops(config, self.vocabulary)[plan.stage],
            parameters=networks(config, self.vocabulary).parameters[plan.stage],
            **times,
        )

    def _labels(self, plan: Measurement) -> Point:
        """Measure the label pipeline."""
        config, count = self._resolved(plan.config), plan.count
        runtime = config.runtime
        rows = count * max(self.steps // 4, BATCHES) * runtime.gang_batch
        location = self.scratch / plan.name
        location.delete_dir()
        train = self.stages.made["tokens"].figures["sequences"]["train"]
        figures = self._write_labels(config, rows / train, location)
        location.delete_dir()
        rate = figures["labels_per_s"]
        ranks, length = runtime.rank_count, config.data.sequence_length
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
            peak_flops_per_s=self._peak(config.optimizer.precision),
            tokens=int(figures["labels"]),
            seconds=figures["labels"] / rate,
            startup_s=max(0.0, figures["seconds"] - figures["labels"] / rate),
            parameters=networks(config, self.vocabulary).parameters["labels"],
        )

    def _peak(self, precision: Precision) -> float:
        """Return the FLOP/s of a large matrix product in one process."""
        runtime = self._resolved(self.config).runtime
        settings = {"gpu": runtime.gpu, "threads": runtime.threads, "precision": precision}
        row = kept(
            self.directory / "points",
            f"peak-{precision}",
            settings,
            lambda: {"flops_per_s": matmul_rate(runtime, precision)},
        )
        return row["flops_per_s"]


def _batch(plan: Measurement) -> int:
    return plan.config.stages()[plan.stage].global_batch if plan.stage != "labels" else 0


def _write_fresh(program: Program, location: Location) -> None:
    write_weights(location, program.objective().state_dict())
