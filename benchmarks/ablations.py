"""What each part of the method brings: text at equal CPU time, one setting changed at a time.

python -m benchmarks.ablations [--results FILE] [--scale X] [--seeds N]

The settings of DMT are compared from one teacher, for equal time. Prints, last, one line of JSON:
bits per byte of the RNN from the empty memory, mean over the seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.memory import Corpus
from benchmarks.method import LABELLED, settings
from benchmarks.pool import RESULTS, Result, measure
from benchmarks.smt import (
    Shares,
    label_drift,
    labelled,
    rnn_score,
    teacher_score,
    train_dmt,
    train_teacher,
)
from smt_ray.config import RunConfig

LENGTH = 128
SECONDS = 150.0
CHANGES: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "R2": {"model.register_depth": 2},
    "S1": {"loss.timesteps": 1},
    "S8": {"loss.timesteps": 8},
    "dense-dynamics": {"loss.dense_dynamics": True},
    "whitened-slots": {"loss.whiten_dynamics": "slots"},
    "not-whitened": {"loss.whiten_dynamics": "none"},
    "no-uniformity": {"loss.uniformity": 0.0},
    "not-dense": {"experimental.dense": False},
    "short-convolution": {"model.short_convolution": 3},
    "mlp": {"model.cell": "mlp"},
    "gru": {"model.cell": "gru"},
    "gru-not-whitened": {"model.cell": "gru", "loss.whiten_dynamics": "none"},
}
"""What is changed before the teacher. The preset has R = 1, S = 4, no convolution, the cell
`transformer`, and whitens directions."""
DMT: dict[str, dict[str, Any]] = {
    "no-readout": {"experimental.readout": 0.0},
    "one-step": {"dmt.mode": "one_step"},
    "visits4": {"dmt.visits": 4.0},
    "visits12": {"dmt.visits": 12.0},
    "visits40": {"dmt.visits": 40.0},
}
"""What is changed in DMT, after the teacher of `as-it-is`. The preset has 2 visits."""


def _changed(config: RunConfig, fields: dict[str, Any]) -> RunConfig:
    for name, value in fields.items():
        config = config.override(name, value)
    return config


def chain(change: str, seed: int, seconds: float) -> Result:
    """Train all stages with one change; from the teacher of `as-it-is` also each change of DMT.

    `slots` is the variance of each memory token over the sequences: 1 is all that it can have.
    """
    config = _changed(settings(LENGTH, seed=seed), CHANGES[change])
    source = Corpus(config.data, seed)
    trained = train_teacher(config, source, seconds, Shares(), LABELLED // 4)
    held = labelled(trained.teacher.encoder, source.held_out())
    left = seconds - trained.seconds

    def finish(config: RunConfig) -> Result:
        objective, _ = train_dmt(config, source, trained, left)
        bits = rnn_score(objective.rnn, held).bits
        return {"bits": bits, "drift": label_drift(objective.rnn, held).nmse}

    result = {
        "limit": seconds,
        "teacher_bits": teacher_score(trained.teacher, held).bits,
        "teacher_steps": trained.stages["teacher"].steps,
        "slots": held["memory"].var(0).mean((0, 2)).tolist(),
        **finish(config),
    }
    for name, values in DMT.items() if change == "as-it-is" else ():
        result[name] = finish(_changed(config, values))
    return result


def by_change(results: dict[str, Result]) -> dict[str, list[Result]]:
    """Return the results of all seeds for each change, those within `as-it-is` as their own."""
    grouped: dict[str, list[Result]] = {}
    for name, result in results.items():
        grouped.setdefault(name.rpartition("-seed")[0], []).append(result)
        for dmt in DMT.keys() & result.keys():
            grouped.setdefault(dmt, []).append(result[dmt])
    order = [*CHANGES, *DMT]
    return dict(sorted(grouped.items(), key=lambda item: [*order, item[0]].index(item[0])))


def figures(results: dict[str, Result]) -> dict[str, float]:
    """Return the RNN's bits and drift of every change, and the teacher's of those before it."""
    return {
        f"{change}_{figure}": fmean(result[figure] for result in seeds)
        for change, seeds in by_change(results).items()
        for figure in ("bits", "teacher_bits", "drift")
        if figure in seeds[0]
    }


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS / "ablations.json",
        help="file of results (%(default)s)",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    jobs = {
        f"{change}-seed{seed}": partial(chain, change, seed, options.scale * SECONDS)
        for seed in range(options.seeds)
        for change in CHANGES
    }
    print(json.dumps(figures(measure(jobs, options.results))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
