"""What each part of the method brings: text at equal CPU time, one setting changed at a time.

python -m benchmarks.ablations [--results DIR] [--scale X] [--seeds N]

Each measurement leaves one JSON file, and a second run makes only the missing ones. The settings of
DMT are compared from one teacher, for equal time. Prints, last, one line of JSON: bits per byte of
the RNN from the empty memory, mean over the seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.corpus import Corpus
from benchmarks.pool import Result, measure
from benchmarks.smt import (
    Labelled,
    Shares,
    label_drift,
    rnn_score,
    seeded,
    teacher_score,
    train_dmt,
    train_teacher,
)
from benchmarks.text import LABELLED, settings
from smt_ray.config import DmtConfig, RunConfig

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ablations"
LENGTH = 128
SECONDS = 150.0
CHANGES: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "no-projection": {"model.project_registers": False},
    "R2": {"model.register_depth": 2},
    "S1": {"loss.timesteps": 1},
    "S8": {"loss.timesteps": 8},
    "detached-dynamics": {"loss.detach_dynamics": True},
    "dense-dynamics": {"loss.dense_dynamics": True},
    "whitened-slots": {"loss.whiten_dynamics": "slots"},
    "not-whitened": {"loss.whiten_dynamics": "none"},
    "no-uniformity": {"loss.uniformity": 0.0},
    "not-dense": {"loss.dense": False},
    "short-convolution": {"model.short_convolution": 3},
    "mlp": {"model.cell": "mlp"},
    "gru": {"model.cell": "gru"},
    "gru-not-whitened": {"model.cell": "gru", "loss.whiten_dynamics": "none"},
    "gru-per-slot": {
        "model.cell": "gru",
        "loss.whiten_dynamics": "none",
        "loss.per_slot": True,
    },
}
"""What is changed before the teacher. The preset has R = 1, S = 4, no convolution, the cell
`transformer`, and whitens directions."""
DMT: dict[str, dict[str, Any]] = {
    "no-readout": {"readout": 0.0},
    "one-step": {"mode": "one_step"},
    "visits4": {"visits": 4.0},
    "visits12": {"visits": 12.0},
    "visits40": {"visits": 40.0},
}
"""What is changed in DMT, after the teacher of `as-it-is`. The preset has 2 visits."""


def chain(change: str, seed: int, seconds: float) -> Result:
    """Train all stages with one change; from the teacher of `as-it-is` also each change of DMT.

    `slots` is the variance of each memory token over the sequences: 1 is all that it can have.
    """
    config = settings(LENGTH)
    for name, value in CHANGES[change].items():
        config = config.override(name, value)
    config = seeded(config, seed)
    source = Corpus(config.data, seed)
    trained = train_teacher(config, source, seconds, Shares(), LABELLED // 4)
    labels = Labelled(trained.teacher.encoder, source.held_out())
    left = seconds - trained.seconds

    def finish(config: RunConfig, dmt: DmtConfig) -> Result:
        objective, _ = train_dmt(config, source, trained, dmt, left)
        bits = rnn_score(objective.rnn, labels.batch).bits
        return {"bits": bits, "drift": label_drift(objective.rnn, labels).nmse}

    result = {
        "limit": seconds,
        "teacher_bits": teacher_score(trained.teacher, labels.batch).bits,
        "teacher_steps": trained.stages["teacher"].steps,
        "slots": labels.batch["memory"].var(0).mean((0, 2)).tolist(),
        **finish(config, config.dmt),
    }
    for name, values in DMT.items() if change == "as-it-is" else ():
        result[name] = finish(config, replace(config.dmt, **values))
    return result


def by_change(results: dict[str, Result]) -> dict[str, list[Result]]:
    """Return the results of all seeds for each change, those within `as-it-is` as their own."""
    grouped: dict[str, list[Result]] = {}
    for name, result in results.items():
        change = name.rpartition("-seed")[0]
        grouped.setdefault(change, []).append(result)
        for dmt in DMT.keys() & result.keys():
            grouped.setdefault(dmt, []).append(result[dmt])
    return {name: grouped[name] for name in (*CHANGES, *DMT) if name in grouped}


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
        "--results", type=Path, default=RESULTS, help="directory of results (%(default)s)"
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
