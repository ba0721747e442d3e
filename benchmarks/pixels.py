"""SMT against BPTT on scikit-learn's digits, bits per pixel at equal CPU time.

python -m benchmarks.pixels [--quick] [--results DIR] [--seeds N] [--scale X]

Each measurement leaves one JSON file, and a second run makes only the missing ones. There are few
images, so each training ends with its best weights on the validation images, which are also the
ones that are scored: the choice favours all methods alike. Prints, last, one line of JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.corpus import Corpus
from benchmarks.pool import Result, measure
from benchmarks.smt import (
    Shares,
    rnn_score,
    teacher_score,
    train_bptt,
    train_dmt,
    train_teacher,
)
from smt_ray.model.rnn import RNN
from smt_ray.recipes import on_pixels

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "pixels"
SECONDS = 300.0
RATES = (4e-3, 2e-3, 1e-3)
LABELLED = 2048


def smt(seed: int, seconds: float) -> Result:
    """Train SMT within `seconds`, all stages together."""
    config = on_pixels("tiny")
    for stage in ("teacher", "transition.train", "dmt.train"):
        config = config.override(f"{stage}.seed", seed)
    corpus = Corpus(config.data, seed)
    held = corpus.held_out()
    trained = train_teacher(
        config, corpus, seconds, Shares(), LABELLED, best=True,
        score=lambda teacher: -teacher_score(teacher, held).bits,
    )  # fmt: skip
    taught = teacher_score(trained.teacher, held).bits
    left = seconds - trained.seconds
    dmt, outcome = train_dmt(
        config, corpus, trained, config.dmt, left, best=True,
        score=lambda rnn: -rnn_score(rnn, held).bits,
    )  # fmt: skip
    before = {name: stage.seconds for name, stage in trained.stages.items()}
    return {
        "bits": rnn_score(dmt.rnn, held).bits,
        "teacher_bits": taught,
        "seconds": {**before, "dmt": outcome.seconds},
        "scores": {"teacher": trained.stages["teacher"].scores, "dmt": outcome.scores},
    }


def bptt(seed: int, seconds: float, rate: float) -> Result:
    """Train the same cell and readout by unrolling."""
    config = on_pixels("tiny")
    corpus = Corpus(config.data, seed)
    held = corpus.held_out()

    def score(rnn: RNN) -> float:
        return -rnn_score(rnn, held).bits

    settings = replace(config.teacher, learning_rate=rate, seed=seed)
    rnn, outcome = train_bptt(config.model, corpus, settings, seconds, score=score, best=True)
    return {
        "bits": rnn_score(rnn, held).bits,
        "rate": rate,
        "seconds": {"bptt": outcome.seconds},
        "scores": {"bptt": outcome.scores},
    }


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pixels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, anew")
    parser.add_argument("--results", type=Path, help="directory of results (docs/results/pixels)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    options = parser.parse_args(arguments)
    seconds, seeds = options.scale * SECONDS, range(1 if options.quick else options.seeds)
    jobs = {f"smt-seed{seed}": partial(smt, seed, seconds) for seed in seeds}
    for rate in RATES:
        for seed in seeds:
            name = f"bptt-rate{rate:g}-seed{seed}"
            jobs[name] = partial(bptt, seed, seconds, rate)
    with tempfile.TemporaryDirectory(prefix="smt-ray-pixels-") as fresh:
        directory = options.results or (Path(fresh) if options.quick else RESULTS)
        results = measure(jobs, directory)
    print(json.dumps(figures(results)))
    return 0


def figures(results: dict[str, Result]) -> dict[str, float]:
    """Return the mean bits per pixel of SMT, its teacher, and BPTT at its best rate."""
    ours = [result for name, result in results.items() if name.startswith("smt")]
    by_rate = {
        rate: [r["bits"] for r in results.values() if r.get("rate") == rate] for rate in RATES
    }
    means = {rate: sum(bits) / len(bits) for rate, bits in by_rate.items()}
    best = min(means, key=lambda rate: means[rate])
    return {
        "smt_bits": sum(result["bits"] for result in ours) / len(ours),
        "teacher_bits": sum(result["teacher_bits"] for result in ours) / len(ours),
        "bptt_bits": means[best],
        "bptt_rate": best,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
