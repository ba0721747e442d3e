"""SMT against BPTT on images, bits per pixel at equal CPU time.

python -m benchmarks.pixels [--source SOURCE] [--quick] [--results DIR] [--seeds N] [--scale X]

Scikit-learn's digits, or an IDX file such as MNIST's. Each measurement leaves one JSON file, and a
second run makes only the missing ones. Each training ends with its best weights on the validation
images, which are also the ones that are scored: the choice favours all methods alike. Prints, last,
one line of JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks import rates
from benchmarks.budget import Scoring
from benchmarks.cells import FINETUNE, FINETUNE_RATE
from benchmarks.corpus import Corpus
from benchmarks.pool import Result, measure
from benchmarks.smt import (
    FULL,
    Labelled,
    Shares,
    bptt_settings,
    label_drift,
    one_step_gradients,
    rnn_score,
    seeded,
    teacher_score,
    told_ahead,
    train_bptt,
    train_dmt,
    train_teacher,
)
from smt_ray.config import BpttConfig
from smt_ray.data.images import DIGITS
from smt_ray.data.sources import image_shape
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.pipeline.recipes import on_pixels

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "pixels"
SECONDS = 300.0
RATES = {"bptt": (8e-3, 4e-3, 2e-3, 1e-3), "bptt_parallel": (4e-3, 2e-3)}
"""Peak learning rates of BPTT; the preset's DMT has 2e-3."""
ONE_STEP_RATE = 1e-3
"""Peak rate of DMT with gradients of one step."""
SHARES = Shares(teacher=0.5, labels=0.1, transition=0.05)
FINETUNED = {"smt": 0.0, "smt_finetune": FINETUNE, "smt_unrolled": 0.0}
"""Share of the time that each method leaves to BPTT at its end."""
SCORES = 30
"""Scores on validation images within the time of a training: they are what it may end with."""


def smt(source: str, seed: int, seconds: float, method: str) -> Result:
    """Train SMT within `seconds`, all stages together, by a method of `FINETUNED`."""
    config, finetune = on_pixels("tiny", source), FINETUNED[method] * seconds
    if method != "smt_unrolled":
        row = image_shape(config.data)[1]
        config = one_step_gradients(config, ONE_STEP_RATE, depth=row)
    config = seeded(config, seed)
    corpus = Corpus(config.data, seed)
    held = corpus.held_out()

    def score(training: Dmt | Bptt) -> float:
        return -rnn_score(training.rnn, held).bits

    every = seconds / SCORES
    scoring = Scoring(score, every=every, best=True)
    labelled = round(config.labels.fraction * len(corpus.train))
    trained = train_teacher(
        config, corpus, seconds - finetune, SHARES, labelled,
        Scoring(lambda teacher: -teacher_score(teacher, held).bits, every=every, best=True),
    )  # fmt: skip
    taught = teacher_score(trained.teacher, held).bits
    left = seconds - finetune - trained.seconds
    dmt, outcome = train_dmt(config, corpus, trained, config.dmt, left, scoring=scoring)
    rnn, stages = dmt.rnn, {**trained.stages, "dmt": outcome}
    before_finetune = rnn_score(rnn, held).bits if finetune else None
    if finetune:
        settings = bptt_settings(config, FINETUNE_RATE, seed)
        rnn, stages["finetune"] = train_bptt(
            config.model, corpus, settings, finetune, start=rnn, scoring=scoring
        )
    return {
        "bits": rnn_score(rnn, held).bits,
        "before_finetune": before_finetune,
        "teacher_bits": taught,
        "told_ahead": told_ahead(trained.teacher, held).bits,
        "drift": label_drift(dmt.rnn, Labelled(trained.teacher.encoder, held)).nmse,
        "seconds": {name: stage.seconds for name, stage in stages.items()},
        "scores": {name: stage.scores for name, stage in stages.items() if stage.scores},
    }


def bptt(source: str, seed: int, seconds: float, rate: float, method: str) -> Result:
    """Train the same cell and readout by unrolling: wholly, or as the preset's DMT does."""
    config, mode = on_pixels("tiny", source), FULL
    corpus = Corpus(config.data, seed)
    held = corpus.held_out()
    settings = bptt_settings(config, rate, seed)
    if method == "bptt_parallel":
        dmt = config.dmt
        mode = BpttConfig(mode="parallel", span=dmt.depth, visits=dmt.visits, windows=dmt.windows)
        settings = replace(settings, global_batch=dmt.train.global_batch)
    scoring = Scoring[Bptt](
        lambda bptt: -rnn_score(bptt.rnn, held).bits, every=seconds / SCORES, best=True
    )
    rnn, outcome = train_bptt(config.model, corpus, settings, seconds, mode=mode, scoring=scoring)
    return {
        "bits": rnn_score(rnn, held).bits,
        "rate": rate,
        "seconds": {"bptt": outcome.seconds},
        "scores": {"bptt": outcome.scores},
    }


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pixels", description=__doc__)
    parser.add_argument("--source", default=DIGITS, help="pixels:digits, or pixels:PATH of an IDX")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument(
        "--results",
        type=Path,
        help="directory of results (docs/results/pixels; --quick: a new one)",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    options = parser.parse_args(arguments)
    seconds, seeds = options.scale * SECONDS, range(1 if options.quick else options.seeds)
    jobs = {}
    for seed in seeds:
        for method in FINETUNED:
            jobs[f"{method}-seed{seed}"] = partial(smt, options.source, seed, seconds, method)
        for method, tried in RATES.items():
            for rate in tried:
                name = f"{method}-rate{rate:g}-seed{seed}"
                jobs[name] = partial(bptt, options.source, seed, seconds, rate, method)
    with tempfile.TemporaryDirectory(prefix="smt-ray-pixels-") as fresh:
        directory = options.results or (Path(fresh) if options.quick else RESULTS)
        results = measure(jobs, directory)
    print(json.dumps(figures(results)))
    return 0


def figures(results: dict[str, Result]) -> dict[str, float]:
    """Return the mean bits per pixel of SMT, its teacher, and BPTT at its best rates."""
    made: dict[str, list[Result]] = {}
    for name, result in results.items():
        seed = int(name.rpartition("-seed")[2])
        made.setdefault(name.partition("-")[0], []).append({**result, "seed": seed})
    found = {}
    for method in RATES.keys() & made:
        tried = rates.by_rate(made[method])
        found[f"{method}_rate"] = rate = rates.best(tried)
        made[method] = tried[rate]
    found |= {f"{name}_bits": fmean(cell["bits"] for cell in cells) for name, cells in made.items()}
    found["teacher_bits"] = fmean(cell["teacher_bits"] for cell in made["smt_unrolled"])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
