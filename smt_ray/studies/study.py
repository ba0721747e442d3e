"""A scaling study: throughput, quality and cost of one run's settings, and the page about them."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from smt_ray.cluster.refusals import explained
from smt_ray.cluster.session import check_storage
from smt_ray.config import RunConfig, masked
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.run_directory import environment
from smt_ray.report.study_page import Study, write_study
from smt_ray.studies.chapters import Result, chapters
from smt_ray.studies.cost import assumed, cost, stages_of
from smt_ray.studies.measurements import Measurement, Point, throughput_rows
from smt_ray.studies.options import RECORD
from smt_ray.studies.points import Row, write_csv
from smt_ray.studies.quality import Variant, compression_rows, curves, quality_rows
from smt_ray.studies.scenario import Plan
from smt_ray.studies.space import Choice, written
from smt_ray.studies.throughput import Throughput

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a study measures; every part but the run may be empty."""

    run: RunConfig
    """The settings that are scaled; `run.name` and `run.storage` say where the study lies."""
    measurements: Sequence[Measurement] = ()
    """Points of throughput."""
    steps: int = 40
    """Optimizer steps of one."""
    axes: Sequence[Choice] = ()
    """What the runs vary."""
    trials: Sequence[Variant] = ()
    """The runs."""
    targets: Sequence[float] = ()
    """Losses of the RNN, in bits, whose smallest memory is asked for."""
    costs: Plan | None = None
    """What is priced."""
    overwrite: bool = False
    """Let names of runs point at runs with other settings."""


def scaling_study(design: Design) -> Result:
    """Make what is missing of the study, and write its tables, figures and page.

    Raises:
        ValueError: for what the user can mend, in one line.
    """
    run, storage = design.run, Location.of(design.run.storage, "storage")
    directory = storage / run.name
    if any((directory / name).exists() for name in ("config.yaml", RECORD)):
        raise ValueError(f"name={run.name}: is that of a run or a sweep; choose another --name")
    plan_source(run.data)  # what is wrong with it is said before any work
    check_storage(storage, 0)
    with explained(storage), locked(directory, run.name):
        return _made(design, directory.make_dir())


def _made(design: Design, directory: Location) -> Result:
    run = design.run
    points: list[Point] = []
    if design.measurements:
        points = Throughput(run, directory, design.measurements, design.steps).points()
        (directory / "throughput.json").write_json([asdict(point) for point in points])
    rows = quality_rows(design.trials, directory, overwrite=design.overwrite)
    result = Result(
        directory,
        throughput_rows(points),
        rows,
        curves(rows, design.axes, run),
        compression_rows(rows, design.targets),
        cost_rows(design.costs, points) if design.costs else [],
    )
    _write(design, result)
    return result


def cost_rows(plan: Plan, points: Sequence[Point]) -> list[Row]:
    """Return the rows of all scenarios of a plan, priced by its own figures or by measurements.

    Raises:
        ValueError: if nothing was measured, or a file of measurements cannot be read.
    """
    if plan.flops_per_s:
        stages = assumed(plan.flops_per_s)
    else:
        stages = stages_of([*points, *(p for file in plan.rates for p in read_points(file))])
    return [row for scenario in plan.scenarios for row in cost(scenario, stages)]


def read_points(file: str) -> list[Point]:
    """Read the `throughput.json` of a study.

    Raises:
        ValueError: if it is none; it names the file.
    """
    try:
        return [Point(**row) for row in Location.of(file).read_json()]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"rates={file}: no throughput.json of a study ({error})") from error


def _write(design: Design, result: Result) -> None:
    directory = result.directory
    tables = {
        "throughput": result.throughput,
        "quality": [{**row, "fields": written(row["fields"])} for row in result.quality],
        "laws": [curve.row() for curve in result.curves],
        "compression": result.compression,
        "cost": result.cost,
    }
    for name, rows in tables.items():
        if rows:
            write_csv(directory / f"{name}.csv", rows)
    if result.cost:
        (directory / "cost.json").write_json(result.cost)
    run = design.run
    study = Study(
        title=run.name,
        kind="scaling study",
        about=f"preset {run.preset}, {masked(run.data.source)}",
        sections=chapters(result),
        config=run.to_dict(),
        environment=environment(run),
    )
    write_study(directory, study)
    logger.info("study: %s", directory)
