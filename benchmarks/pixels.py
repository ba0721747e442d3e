"""SMT against BPTT on images, bits per pixel at equal CPU time.

python -m benchmarks.pixels [--source SOURCE] [--quick] [--results FILE] [--seeds N] [--scale X]

Scikit-learn's digits, or an IDX file such as MNIST's. Each training ends with its best weights on
the validation images, which are also the ones that are scored: the choice favours all methods
alike. Prints, last, one line of JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.memory import Corpus
from benchmarks.pool import RESULTS, Result, best_rate, measure
from benchmarks.smt import (
    Scoring,
    Shares,
    label_drift,
    labelled,
    one_step_gradients,
    rnn_score,
    teacher_score,
    told_ahead,
    train_bptt,
    train_dmt,
    train_teacher,
    with_bptt,
)
from smt_ray.data.images import DIGITS
from smt_ray.data.rows import Batch
from smt_ray.data.sources import images_in
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.pipeline.recipes import on_pixels

SECONDS = 300.0
RATES = {"bptt": (8e-3, 4e-3, 2e-3, 1e-3), "bptt_parallel": (4e-3, 2e-3)}
"""Peak learning rates of BPTT; the preset's DMT has 2e-3."""
ONE_STEP_RATE = 1e-3
"""Peak rate of DMT with gradients of one step."""
SHARES = Shares(teacher=0.5, labels=0.1, transition=0.05)
FINETUNE_RATE = 2e-3
METHODS = {"smt": 0.0, "smt_finetune": 0.3, "smt_unrolled": 0.0}
"""Share of the time that each method leaves to BPTT at its end."""
SCORES = 30
"""Scores on validation images within the time of a training: they are what it may end with."""


def smt(source: str, seed: int, seconds: float, method: str) -> Result:
    """Train SMT within `seconds`, all stages together, by one of `METHODS`."""
    config, finetune = on_pixels("tiny", source).override("seed", seed), METHODS[method] * seconds
    if method != "smt_unrolled":
        depth = images_in(config.data).width
        config = one_step_gradients(config, ONE_STEP_RATE, depth=depth)
    corpus = Corpus(config.data, seed)
    held, every = corpus.held_out(), seconds / SCORES
    images = round(config.labels.fraction * len(corpus.train))
    trained = train_teacher(
        config, corpus, seconds - finetune, SHARES, images,
        Scoring(lambda teacher: -teacher_score(teacher, held).bits, every=every, best=True),
    )  # fmt: skip
    left, scoring = seconds - finetune - trained.seconds, _bits(held, every)
    dmt, outcome = train_dmt(config, corpus, trained, left, scoring=scoring)
    rnn, stages = dmt.rnn, {**trained.stages, "dmt": outcome}
    before_finetune = rnn_score(rnn, held).bits if finetune else None
    if finetune:
        config = with_bptt(config, FINETUNE_RATE)
        rnn, stages["finetune"] = train_bptt(config, corpus, finetune, start=rnn, scoring=scoring)
    return {
        "seed": seed,
        "bits": rnn_score(rnn, held).bits,
        "before_finetune": before_finetune,
        "teacher_bits": teacher_score(trained.teacher, held).bits,
        "told_ahead": told_ahead(trained.teacher, held).bits,
        "drift": label_drift(dmt.rnn, labelled(trained.teacher.encoder, held)).nmse,
        "seconds": {name: stage.seconds for name, stage in stages.items()},
        "scores": {name: stage.scores for name, stage in stages.items() if stage.scores},
    }


def bptt(source: str, seed: int, seconds: float, rate: float, method: str) -> Result:
    """Train the same cell and readout by unrolling: wholly, or as the preset's DMT does."""
    config = on_pixels("tiny", source).override("seed", seed)
    dmt = config.dmt
    if method == "bptt_parallel":
        config = with_bptt(config, rate, mode="parallel", span=dmt.depth, visits=dmt.visits)
        config = config.override("bptt.global_batch", dmt.global_batch)
    else:
        config = with_bptt(config, rate)
    corpus = Corpus(config.data, seed)
    held = corpus.held_out()
    scoring = _bits(held, seconds / SCORES)
    rnn, outcome = train_bptt(config, corpus, seconds, scoring=scoring)
    return {
        "seed": seed,
        "bits": rnn_score(rnn, held).bits,
        "rate": rate,
        "seconds": {"bptt": outcome.seconds},
        "scores": {"bptt": outcome.scores},
    }


def _bits(held: Batch, every: float) -> Scoring:
    def score(training: Dmt | Bptt) -> float:
        return -rnn_score(training.rnn, held).bits

    return Scoring(score, every=every, best=True)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pixels", description=__doc__)
    parser.add_argument("--source", default=DIGITS, help="pixels:digits, or pixels:PATH of an IDX")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument(
        "--results",
        type=Path,
        help="file of results (docs/results/pixels.json; --quick: a new one)",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    options = parser.parse_args(arguments)
    seconds, seeds = options.scale * SECONDS, range(1 if options.quick else options.seeds)
    jobs = {}
    for seed in seeds:
        for method in METHODS:
            jobs[f"{method}-seed{seed}"] = partial(smt, options.source, seed, seconds, method)
        for method, tried in RATES.items():
            for rate in tried:
                name = f"{method}-rate{rate:g}-seed{seed}"
                jobs[name] = partial(bptt, options.source, seed, seconds, rate, method)
    with tempfile.TemporaryDirectory(prefix="smt-ray-pixels-") as fresh:
        own = Path(fresh) if options.quick else RESULTS
        results = measure(jobs, options.results or own / "pixels.json")
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
        found[f"{method}_rate"] = rate = best_rate(made[method])
        made[method] = [cell for cell in made[method] if cell["rate"] == rate]
    found |= {f"{name}_bits": fmean(cell["bits"] for cell in cells) for name, cells in made.items()}
    found["teacher_bits"] = fmean(cell["teacher_bits"] for cell in made["smt_unrolled"])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
