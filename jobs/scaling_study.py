"""Measure how training scales: in workers and gangs, in sizes, and what a plan would cost.

python jobs/scaling_study.py [PRESET] --name N [--workers 1,2,4] [--gangs 1,2] [--quality F=A,B,C]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tyro

from smt_ray.cluster.launcher import leave_to_first_task
from smt_ray.config import RunConfig
from smt_ray.pipeline.command_line import GOES_ON, Options, parse_run, reported
from smt_ray.pipeline.recipes import on_source
from smt_ray.studies.measurements import INTERVALS, measurements
from smt_ray.studies.quality import trials
from smt_ray.studies.scenario import read_plan
from smt_ray.studies.space import Choice, parse_space, written
from smt_ray.studies.study import Design, scaling_study
from smt_ray.studies.tables import (
    cost_table,
    laws_table,
    quality_table,
    terminal_table,
    throughput_table,
)
from smt_ray.terminal import configure_logging

ABOUT = """Measure how training scales: throughput over workers and encoder gangs, losses over
sizes, and what a plan would cost. What is finished is kept: the same command goes on, and a changed
one makes only what is missing.

A study leaves STORAGE/NAME/: report.html, figures (PNG), throughput.csv, quality.csv, laws.csv,
compression.csv, cost.csv. The runs of --quality are ordinary runs, NAME.FIELD-VALUE beside it."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """What to measure; every other field holds for all measurements."""

    workers: str = "1,2"
    """Numbers of training workers; for each, weak scaling (the global batch grows with them) and
    strong scaling (it stays)."""
    gangs: str = "1,2"
    """Numbers of encoder gangs, of `runtime.gang-ranks` processes each."""
    steps: int = 40
    """Optimizer steps of one measurement, a multiple of 8."""
    repeats: int = 1
    """Times that each measurement is made, in turns; the one of the median rate counts."""
    throughput: bool = True
    """Measure throughput."""
    quality: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=A,B,C: run the whole pipeline for each value, all else as given; once for each field.
    `model.width` sets losses against parameters, `data.sequence-length` against context,
    `model.memory-tokens` against memory, `teacher.steps` against tokens."""
    grid: bool = False
    """Run every combination of the --quality values, which tells how small the memory may be."""
    targets: str = ""
    """Losses of the RNN, in bits, whose smallest memory is asked for; empty: quartiles."""
    bptt: bool = False
    """Train the same RNN by BPTT beside it, on as many tokens as the teacher."""
    cost: str = ""
    """YAML file of a plan to price: tokens, workers, prices; `jobs/plan.yaml` explains each key."""
    overwrite: bool = False
    """Let the names of the --quality runs point at runs with other settings."""
    plan: bool = False
    """Print the measurements and runs, then stop."""


def parse(arguments: Sequence[str]) -> tuple[StudyOptions, Design]:
    """Parse the job's arguments.

    Raises:
        ValueError: in one line, for an unknown preset, file, flag or a bad value.
    """
    options = parse_run(arguments, ABOUT, _preset, kind=StudyOptions)
    run = options.run
    if options.bptt:
        tokens = {"steps": run.teacher.steps, "global_batch": run.teacher.global_batch}
        run = run.update({"bptt": tokens})
    if options.steps < INTERVALS or options.steps % INTERVALS:
        raise ValueError(f"steps={options.steps}: must be a multiple of {INTERVALS}")
    if options.repeats < 1:
        raise ValueError(f"repeats={options.repeats}: must be >= 1")
    workers, gangs = (_counts(name, getattr(options, name)) for name in ("workers", "gangs"))
    measured = options.throughput
    axes = _axes(options.quality)
    design = Design(
        run=run,
        measurements=measurements(run, workers, gangs, options.steps, options.repeats)
        if measured
        else (),
        steps=options.steps,
        axes=axes,
        trials=trials(run, axes, product=options.grid),
        targets=_targets(options.targets),
        costs=read_plan(options.cost, run) if options.cost else None,
        overwrite=options.overwrite,
    )
    costs = design.costs
    if costs and not (measured or costs.rates or costs.flops_per_s):
        raise ValueError(
            "throughput=False: leaves nothing to price by; drop --no-throughput, or give `rates` "
            f"or `flops_per_s` in {options.cost}"
        )
    if not (measured or axes or costs):
        raise ValueError("throughput=False: leaves nothing to do; give --quality or --cost")
    return options, design


def _preset(name: str, **given: Any) -> RunConfig:
    run = on_source(name, **given)
    return replace(run, name=f"{run.name}-scaling")


def _counts(name: str, text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{name}={text}: must be whole numbers > 0 with commas, as 1,2,4")
    return sorted({int(word) for word in words})


def _targets(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if text]
    except ValueError:
        raise ValueError(f"targets={text}: must be numbers with commas, as 2.5,2.8") from None


def _axes(texts: Sequence[str]) -> list[Choice]:
    if not texts:
        return []
    try:
        parts = parse_space(texts)
    except ValueError as error:
        raise ValueError(str(error).replace("space=", "quality=", 1)) from None
    for part in parts:
        if not isinstance(part, Choice):
            raise ValueError(f"quality={part}: must be a list of values, as {part.field}=1,2,4")
    return [part for part in parts if isinstance(part, Choice)]


def described(design: Design) -> str:
    """Return what a study would measure and run."""
    points = [f"{plan.name}: {_batches(plan.config, plan.stage)}" for plan in design.measurements]
    runs = [f"{trial.config.name}: {written(trial.fields)}" for trial in design.trials]
    return "\n".join([f"{len(points)} measurements, {len(runs)} runs", *points, *runs])


def _batches(config: RunConfig, stage: str) -> str:
    if stage == "labels":
        return f"gangs of ranks: {config.runtime.gangs} x {config.runtime.gang_ranks}"
    train = config.stages()[stage]
    return f"sequences of workers: {train.global_batch} / {config.runtime.workers}"


def main() -> int:
    """Parse, measure, print."""
    configure_logging()
    leave_to_first_task()
    with reported(GOES_ON):
        options, design = parse(sys.argv[1:])
        if options.plan:
            print(described(design))
            return 0
        result = scaling_study(design)
    tables = {
        "throughput": throughput_table(result.throughput),
        "quality": quality_table(result.quality),
        "laws": laws_table(result.curves),
        "cost": cost_table(result.cost),
    }
    for name, table in tables.items():
        if table.rows:
            print(terminal_table(f"{design.run.name}: {name}", table))
    print(f"report: {result.directory / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
