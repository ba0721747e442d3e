"""How two workers scale, and how well a cost is predicted, at the paper's widths on two cores.

python -m benchmarks.scaling [--quick] [--sizes paper|tiny] [--turns N] [--directory DIR]

Prints, last, one line of JSON. `weak_efficiency_2_<stage>`: the rate of two workers (of `labels`:
gangs) over twice that of one, the median of the ratios of several turns; each worker has one thread
and the same share. `cost_model_error`: the largest relative error over the stages of the seconds
that are predicted for a run of twice the tokens and another K from short runs of two K, start-up
apart; `cost_model_error_<stage>` are those of each. All else goes to stderr.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.paper import SHORT, VOCABULARY
from smt_ray.config import RunConfig
from smt_ray.config.presets import preset
from smt_ray.data.storage import Location
from smt_ray.studies.cost import Stage, cost, stages_of
from smt_ray.studies.measurements import Measurement, Point, measurements
from smt_ray.studies.scenario import Scenario
from smt_ray.studies.throughput import Throughput
from smt_ray.terminal import configure_logging

STAGES = ("teacher", "labels", "transition")
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "tiny": {"model": {"width": 32, "heads": 2, "encoder_depth": 1, "decoder_depth": 1,
                       "cell_depth": 1}},
}  # fmt: skip
"""What each size changes of the paper's widths and depths."""
FILES = 64
"""Modules of the standard library whose text is trained on."""
MEMORY, FEWER, OTHER = 16, 4, 8
"""K of the scaling runs; of short runs beside them; of the run that is predicted."""


@dataclass(frozen=True)
class Effort:
    """How long is measured."""

    steps: int
    turns: int


QUICK, WHOLE = Effort(steps=8, turns=3), Effort(steps=32, turns=5)


def main(arguments: Sequence[str]) -> int:
    """Measure, predict, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 steps, 3 turns: 15 minutes")
    parser.add_argument("--sizes", choices=SIZES, default="paper", help="widths and depths")
    parser.add_argument("--turns", type=int, help="turns of one and two workers")
    parser.add_argument("--directory", help="keep the points here, and go on from them")
    options = parser.parse_args(arguments)
    configure_logging()
    # Ray Train looks for reports every 2 s: as long as what is measured here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    effort = QUICK if options.quick else WHOLE
    effort = replace(effort, turns=options.turns or effort.turns)
    with tempfile.TemporaryDirectory(prefix="smt-ray-scaling-") as fresh:
        place = Path(options.directory or fresh).absolute()
        figures = scaling_figures(place, effort, SIZES[options.sizes])
    print(json.dumps(figures))
    return 0


def scaling_figures(place: Path, effort: Effort, sizes: dict[str, Any]) -> dict[str, float]:
    """Return the figures; points are kept in `place`."""
    own = {"storage": str(place), "data": {"source": str(_text(place) / "*.txt")}}
    config = preset("paper").update(SHORT).update(sizes).update(own)
    config = _with_memory(config, MEMORY)
    planned = _weak(config, [1, 2], effort.steps, effort.turns)
    points = _measure(config, place, planned, effort.steps)
    figures = {f"weak_efficiency_2_{stage}": _efficiency(points, stage) for stage in STAGES}

    fewer = _with_memory(config, FEWER)
    short = _measure(fewer, place, _weak(fewer, [1], effort.steps), effort.steps)
    stages = stages_of([*points, *short])
    other = _with_memory(config, OTHER)
    steps = 2 * effort.steps
    longer = _weak(other, [1], steps)
    actual = _measure(other, place, longer, steps)
    errors = {
        point.stage: abs(predicted_seconds(one, point, stages) / point.seconds - 1)
        for one, point in zip(longer, actual, strict=True)
    }
    figures["cost_model_error"] = max(errors.values())
    return figures | {f"cost_model_error_{stage}": error for stage, error in errors.items()}


def _text(place: Path) -> Path:
    """Write the standard library's first modules to a directory: start-up grows with the text."""
    directory = place / "text"
    directory.mkdir(parents=True, exist_ok=True)
    for module in sorted(Path(argparse.__file__).parent.glob("*.py"))[:FILES]:
        (directory / f"{module.stem}.txt").write_bytes(module.read_bytes())
    return directory


def _with_memory(config: RunConfig, slots: int) -> RunConfig:
    return config.update({"model": {"memory_tokens": slots}})


def _weak(
    config: RunConfig, counts: Sequence[int], steps: int, turns: int = 1
) -> list[Measurement]:
    return [
        one
        for one in measurements(config, counts, counts, steps, turns)
        if one.stage in STAGES and one.scaling != "strong"
    ]


def _measure(
    config: RunConfig, place: Path, planned: Sequence[Measurement], steps: int
) -> list[Point]:
    directory = Location.of(place / f"memory-{config.model.memory_tokens}")
    return Throughput(config, directory, planned, steps).points()


def _efficiency(points: Sequence[Point], stage: str) -> float:
    """Return the median over the turns of a stage, in which one and two alternate."""
    rates = {
        count: [point.per_s for point in points if (point.stage, point.count) == (stage, count)]
        for count in (1, 2)
    }
    pairs = zip(rates[1], rates[2], strict=True)
    return statistics.median(two / (2 * one) for one, two in pairs)


def predicted_seconds(one: Measurement, point: Point, stages: dict[str, Stage]) -> float:
    """Return the seconds, start-up apart, that are predicted for a run of so many tokens."""
    scenario = Scenario(
        run=one.config,
        vocabulary=VOCABULARY,
        tokens=point.tokens,
        passes={},
        workers=1,
        gangs=1,
    )
    stages = {**stages, "dmt": stages["transition"]}  # not measured, and not asked for
    rows = cost(scenario, stages)
    return next(row["seconds"] for row in rows if row["stage"] == point.stage)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
