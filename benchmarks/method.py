"""The parts of the method against each other, on text, at equal CPU time or equal steps.

python -m benchmarks.method [--quick] [--results DIR] [--seeds N] [--scale X]

Which encoder labels faster and teaches more, with one register block or two; what each mode of DMT
brings; where SMT and BPTT cross as sequences grow. Each measurement leaves one JSON file, and a
second run makes only the missing ones. Prints, last, one line of JSON; `*_bits` are bits per byte
of a rollout from the empty memory.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from benchmarks import text
from benchmarks.pool import Result, measure
from benchmarks.smt import FULL
from smt_ray.config import BpttConfig, EncoderKind

Jobs = dict[str, partial[Result]]
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "method"
SECONDS = {32: 300.0, 128: 300.0, 256: 300.0, 512: 400.0}
"""CPU seconds of a training by length."""
QUICK = {128: 240.0, 512: 320.0}
ENCODER_SECONDS, DMT_SECONDS = 150.0, 90.0
"""Of a chain with either encoder; of the quick run's modes of DMT at L = 32."""
TURN = 5.0
"""CPU seconds of an encoder's turn at labelling."""
RATES = (8e-3, 4e-3, 2e-3)
"""Peak learning rates of BPTT; the teacher has the preset's, 4e-3."""
MODES = ("one_step", "sequential", "parallel")
"""Modes of DMT."""
TRUNCATED = BpttConfig(mode="truncated", span=64)
BATCH = 8
"""Sequences a step in `bptt_batch8` at the greatest length: four times `text.TOKENS_A_STEP`."""
SPAN = 8
"""Timesteps of a part in `bptt_parallel`, as many as the preset's `dmt.depth`."""
VISITS = 2.0
"""Mean visits of a sequence in `bptt_parallel`, as many as the preset's `dmt.visits`. It is tried
with one for each part, too: its states are then a rollout's, but fresh sequences are fewer."""
WIDE = {"width": 128, "memory_tokens": 8, "heads": 4, "encoder_depth": 4}
BLOCKS: dict[str, dict[str, Any]] = {
    "R2": {"register_depth": 2},
    "R1_wide": {**WIDE, "register_depth": 1},
    "R2_wide": {**WIDE, "register_depth": 2},
}
"""Register blocks other than those of `smt_unrolled_L128`, and both in a larger model."""


def jobs(seconds: Mapping[int, float], scale: float, *, quick: bool) -> Jobs:
    """Return what is measured on the first seed, the long ones first."""
    found: Jobs = {}
    for length in seconds:
        limit = scale * seconds[length]
        modes = MODES if length in {32, 128} or not quick else ("parallel",)
        found[f"smt_L{length}"] = partial(text.smt, length, limit, modes=modes)
        found[f"smt_unrolled_L{length}"] = partial(text.smt_unrolled, length, limit)
        found |= _unrolled(length, limit, quick=quick)
    if quick:
        found["smt_L32"] = partial(text.smt, 32, scale * DMT_SECONDS, modes=MODES)
    else:
        found |= _blocks(scale * seconds[128])
    for encoder in get_args(EncoderKind):
        limit = scale * ENCODER_SECONDS
        found[f"encoder_{encoder}"] = partial(text.encoders, encoder, limit)
    found["counted"] = partial(text.counted)
    return found


def _unrolled(length: int, limit: float, *, quick: bool, seed: int = 0) -> Jobs:
    """Return each training by BPTT."""
    modes = {f"bptt_L{length}": FULL}
    if length > 2 * TRUNCATED.span:
        modes[f"bptt_truncated_L{length}"] = TRUNCATED
    found: Jobs = {}
    for rate in RATES:
        train = partial(text.bptt, length, limit, rate, seed=seed)
        for name, mode in modes.items():
            found[f"{name}-rate{rate:g}"] = partial(train, mode)
        if quick:
            continue
        for visits in (VISITS, length / SPAN):
            mode = BpttConfig(mode="parallel", span=SPAN, visits=visits)
            found[f"bptt_parallel_L{length}-rate{rate:g}-visits{visits:g}"] = partial(train, mode)
        if length == max(SECONDS):
            found[f"bptt_batch{BATCH}_L{length}-rate{rate:g}"] = partial(train, batch=BATCH)
    return found


def _blocks(limit: float, seed: int = 0) -> Jobs:
    """Return SMT with one or two register blocks, in a larger model, too."""
    return {
        name: partial(text.smt_unrolled, 128, limit, model=model, seed=seed)
        for name, model in BLOCKS.items()
    }


def again(
    results: Mapping[str, Result], seconds: Mapping[int, float], scale: float, seed: int
) -> Jobs:
    """Return what is measured on a further seed: SMT, and BPTT at the best of its settings."""
    best = set(best_settings(results).values())
    made = _blocks(scale * seconds[128], seed)
    for length in seconds:
        limit = scale * seconds[length]
        made[f"smt_L{length}"] = partial(text.smt, length, limit, seed=seed)
        made[f"smt_unrolled_L{length}"] = partial(text.smt_unrolled, length, limit, seed=seed)
        unrolled = _unrolled(length, limit, quick=False, seed=seed)
        made |= {setting: job for setting, job in unrolled.items() if setting in best}
    return {f"{name}-seed{seed}": job for name, job in made.items()}


def by_setting(results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """Return the results of each setting in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for name in sorted(results):
        found.setdefault(name.partition("-seed")[0], []).append(results[name])
    return found


def best_settings(results: Mapping[str, Result]) -> dict[str, str]:
    """Return the setting of each measurement of BPTT that has the fewest bits on the first seed."""
    settings: dict[str, list[str]] = {}
    for setting in by_setting(results):
        if setting.startswith("bptt"):
            settings.setdefault(setting.partition("-")[0], []).append(setting)
    return {
        name: min(tried, key=lambda setting: results[setting]["bits"])
        for name, tried in settings.items()
    }


def speedup(result: Result) -> float | None:
    """Return the time of `sequential` over that of `parallel` to equal drift AND bits.

    The goal is the weaker of what the two reach at their ends, in each figure; a time is that of
    the first point at or below it in both, which a mode's own end is.
    """
    tracks = [result[mode]["track"] for mode in ("sequential", "parallel")]
    if not all(tracks):  # trained for less than EVERY
        return None
    goal = {name: max(track[-1][name] for track in tracks) for name in ("bits", "drift")}
    sequential, parallel = (
        next(p["seconds"] for p in track if all(p[name] <= goal[name] for name in goal))
        for track in tracks
    )
    return sequential / parallel


def bits(results: Mapping[str, Result]) -> dict[str, list[float]]:
    """Return the bits of SMT's and BPTT's measurements, of BPTT's the best setting, by seed."""
    seeds = by_setting(results)
    found = {
        name: [result["bits"] for result in seeds[setting]]
        for name, setting in best_settings(results).items()
    }
    for name, made in seeds.items():
        if name.startswith("smt_unrolled"):
            found[name] = [result["bits"] for result in made]
        elif name.startswith("smt"):
            found[name] = [result["parallel"]["bits"] for result in made]
    return found


def figures(results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the named figures: bits of SMT and BPTT are means over their seeds."""
    rate = results["labels"]
    seeds = by_setting(results)
    found: dict[str, Any] = {
        "labels_causal_over_bidirectional": rate["causal"] / rate["bidirectional"],
        "labels_causal_R2_over_bidirectional": rate["causal_R2"] / rate["bidirectional"],
        "labels_causal_over_padded": rate["causal"] / rate["padded"],
        "bits_causal": results["encoder_causal"]["bits"],
        "bits_bidirectional": results["encoder_bidirectional"]["bits"],
        **{f"{name}_bits": results["counted"][name] for name in ("order1", "order2")},
    }
    for mode in ("before_dmt", *MODES):
        for name in ("bits", "drift"):
            found[f"{name}_{mode}"] = results["smt_L128"][mode][name]
    for name, values in bits(results).items():
        kind, _, length = name.rpartition("_")
        found[f"{kind}_bits_{length}"] = fmean(values)
        if "sequential" in results.get(name, ()):
            found[f"dmt_speedup_{length}"] = speedup(results[name])
    for name in BLOCKS:
        if name in seeds:
            found[f"bits_{name}"] = fmean(result["bits"] for result in seeds[name])
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=about)
    parser.add_argument(
        "--quick", action="store_true", help="two lengths, one seed; DMT's modes at a third"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="directory of results (docs/results/method; --quick: a new one)",
    )
    parser.add_argument("--seeds", type=int, default=2, help="of SMT, and BPTT's best settings")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    options = parser.parse_args(arguments)
    seconds, scale = QUICK if options.quick else SECONDS, options.scale
    with tempfile.TemporaryDirectory(prefix="smt-ray-method-") as fresh:
        directory = options.results or (Path(fresh) if options.quick else RESULTS)
        labels = {"labels": partial(text.label_rates, scale * TURN)}
        made = measure(labels, directory)  # alone: another process takes of the memory's bandwidth
        made |= measure(jobs(seconds, scale, quick=options.quick), directory)
        for seed in range(1, 1 if options.quick else options.seeds):
            made |= measure(again(made, seconds, scale, seed), directory)
        print(json.dumps(figures(made)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
