"""The parts of the method against each other, on text, at equal CPU time or equal steps.

python -m benchmarks.method [--quick] [--results FILE] [--seeds N] [--scale X]

Which encoder labels faster and teaches more, with one register block or two; what each mode of DMT
brings; where SMT and BPTT cross as sequences grow. A second run makes only what is missing.
Prints, last, one line of JSON; `*_bits` are bits per byte of a rollout from the empty memory.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.memory import Corpus
from benchmarks.pool import RESULTS, Result, measure
from benchmarks.smt import (
    Outcome,
    Scoring,
    Shares,
    label_drift,
    labelled,
    one_step_gradients,
    rnn_score,
    teacher_score,
    train_bptt,
    train_dmt,
    train_teacher,
    with_bptt,
)
from benchmarks.timer import now
from smt_ray.config import EncoderKind, ModelConfig, RunConfig
from smt_ray.data.rows import Batch
from smt_ray.evaluation.ngrams import NgramModel
from smt_ray.model.encoder import build_encoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.dmt import Dmt
from smt_ray.pipeline.recipes import on_text

Jobs = dict[str, partial[Result]]
SECONDS = {32: 300.0, 128: 300.0, 256: 300.0, 512: 400.0}
"""CPU seconds of a training by length."""
QUICK = {128: 240.0, 512: 320.0}
ENCODER_SECONDS, DMT_SECONDS = 150.0, 90.0
"""Of a chain with either encoder; of the quick run's modes of DMT at L = 32."""
TURN, TURNS = 5.0, 5
"""CPU seconds of an encoder's turn at labelling, and how many turns it has."""
RATES = (8e-3, 4e-3, 2e-3)
"""Peak learning rates of BPTT; the teacher has the preset's, 4e-3."""
MODES = ("one_step", "sequential", "parallel")
"""Modes of DMT."""
CUT = 64
"""Timesteps between the cuts of `bptt_truncated`."""
SPAN, VISITS = 8, 2.0
"""Of a part in `bptt_parallel`, as the preset's `dmt.depth` and `dmt.visits`. One visit for each
part is tried, too: its states are then a rollout's, but fresh sequences are fewer."""
TOKENS_A_STEP = 1024
"""Inputs in a step of every method and length."""
LABEL_SHAPE = ModelConfig(width=256, memory_tokens=16, heads=8, encoder_depth=8)
"""The shape at which encoders label, L = 256; the causal one with two register blocks, too."""
ONE_STEP_RATE = 4e-3
"""Peak rate of DMT with gradients of one step."""
UNROLLED = Shares(teacher=0.5, labels=0.1)
LABELLED = 2048
EVERY = 4.0
"""CPU seconds between two scores on the way."""


def settings(
    length: int, encoder: EncoderKind = "causal", *, unroll: bool = False, seed: int = 0
) -> RunConfig:
    """Return the preset `tiny` for sequences of `length`, with `TOKENS_A_STEP` in every step.

    DMT has gradients of one step, or the preset's (`unroll`). The bidirectional encoder makes the
    memories of sampled timesteps alone, of which a forward has fewer than a slot has directions:
    its dynamics are whitened by slot.
    """
    rows = {"global_batch": max(1, TOKENS_A_STEP // length)}
    stages = dict.fromkeys(("teacher", "transition", "dmt", "bptt"), rows)
    config = on_text("tiny").update({"seed": seed, "data": {"sequence_length": length}, **stages})
    config = config if unroll else one_step_gradients(config, ONE_STEP_RATE, **rows)
    if encoder == "bidirectional":
        config = config.override("model.encoder", encoder)
        config = config.override("loss.whiten_dynamics", "slots")
    return config.override("runtime.workers", 1)


def label_rates(seconds: float) -> Result:
    """Return the labels a second of each encoder of `LABEL_SHAPE`, L = 256.

    The bidirectional one pads contexts to the longest of a chunk; `padded` is the same network with
    all of them padded to L, as where timesteps are asked for by name. They take turns of at least
    `seconds`, so that whatever else the machine does slows all alike.
    """
    torch.manual_seed(0)
    shapes = {
        "causal": LABEL_SHAPE,
        "causal_R2": replace(LABEL_SHAPE, register_depth=2),
        "bidirectional": replace(LABEL_SHAPE, encoder="bidirectional"),
    }
    networks = {kind: build_encoder(shape, 256) for kind, shape in shapes.items()}
    padded = partial(networks["bidirectional"], timesteps=torch.arange(256)[None])
    encode: dict[str, Callable[[Tensor], Tensor]] = {**networks, "padded": padded}
    tokens = torch.randint(256, (1, 256))
    made, used = dict.fromkeys(encode, 0), dict.fromkeys(encode, 0.0)
    with torch.inference_mode():
        for turn in range(1 + TURNS):
            for kind, encoder in encode.items():
                labels, began = 0, now()
                while not labels or now() - began < seconds:
                    labels += encoder(tokens).shape[:2].numel()
                if turn:  # the first one warms up
                    made[kind] += labels
                    used[kind] += now() - began
    return {kind: made[kind] / used[kind] for kind in encode}


def counted() -> Result:
    """Return the bits, at L = 128, of models that have counted all training bytes once."""
    source = Corpus(settings(128).data)

    def windows(part: Mapping[str, Any]) -> NDArray[np.int32]:
        inputs, targets = (np.asarray(part[name], np.int32) for name in ("inputs", "targets"))
        return np.concatenate((inputs, targets[:, -1:]), axis=1)

    model = NgramModel.fit([windows(vars(source.train))], source.vocabulary)
    held = windows(source.held_out())
    targets = held[:, 1:].size
    return {f"order{order}": model.bits(held, order)[1] / targets for order in (1, 2)}


def encoders(encoder: EncoderKind, seconds: float) -> Result:
    """Train the whole chain at L = 128 with one encoder or the other."""
    config = settings(128, encoder)
    source = Corpus(config.data)
    trained = train_teacher(config, source, seconds, Shares(), LABELLED // 4)
    dmt, outcome = train_dmt(config, source, trained, seconds - trained.seconds)
    return {
        "bits": rnn_score(dmt.rnn, source.held_out()).bits,
        "teacher_bits": teacher_score(trained.teacher, source.held_out()).bits,
        "teacher_steps": trained.stages["teacher"].steps,
        "labels": trained.stages["labels"].tokens,
        "seconds": trained.seconds + outcome.seconds,
    }


def smt(
    length: int, seconds: float, *, modes: Sequence[str] = ("parallel",), seed: int = 0
) -> Result:
    """Train SMT within `seconds`; then the other modes of DMT with as many steps each."""
    config = settings(length, seed=seed)
    source = Corpus(config.data, seed)
    trained = train_teacher(config, source, seconds, Shares(), LABELLED * 128 // length)
    held = labelled(trained.teacher.encoder, source.held_out())
    before, _ = train_dmt(config, source, trained, 0.0)
    result: Result = {
        "teacher_bits": teacher_score(trained.teacher, held).bits,
        "before_dmt": _figures(before.rnn, held),
        "seconds_before_dmt": trained.seconds,
    }
    left, steps = seconds - trained.seconds, float("inf")
    for mode in sorted(modes, key=lambda mode: mode != "parallel"):
        track = Track(held)
        scoring = Scoring(track, every=EVERY) if len(modes) > 1 else None
        own, limit = config.override("dmt.mode", mode), left if mode == "parallel" else 8 * left
        dmt, outcome = train_dmt(own, source, trained, limit, steps=steps, scoring=scoring)
        steps = min(steps, max(1, outcome.steps))
        result[mode] = {**_figures(dmt.rnn, held), **_used(outcome)}
        if len(modes) > 1:
            result[mode]["track"] = track.points(outcome)
    return result


def smt_unrolled(length: int, seconds: float, *, seed: int = 0) -> Result:
    """Train SMT within `seconds`, its DMT unrolled as the preset has it."""
    config = settings(length, unroll=True, seed=seed)
    source = Corpus(config.data, seed)
    trained = train_teacher(config, source, seconds, UNROLLED, LABELLED * 128 // length)
    held = labelled(trained.teacher.encoder, source.held_out())
    dmt, outcome = train_dmt(config, source, trained, seconds - trained.seconds)
    return {
        "teacher_bits": teacher_score(trained.teacher, held).bits,
        "seconds_before_dmt": trained.seconds,
        **_figures(dmt.rnn, held),
        **_used(outcome),
    }


def bptt(length: int, seconds: float, rate: float, seed: int = 0, **unroll: Any) -> Result:
    """Train the same cell and readout by unrolling, as the fields of `unroll` say."""
    config = with_bptt(settings(length, seed=seed), rate, **unroll)
    source = Corpus(config.data, seed)
    rnn, outcome = train_bptt(config, source, seconds)
    return {"bits": rnn_score(rnn, source.held_out()).bits, "rate": rate, **_used(outcome)}


class Track:
    """Bits and drift on the way: what a mode has reached after so many seconds."""

    def __init__(self, held: Batch) -> None:
        """Score against a part of labelled sequences."""
        self.held = {name: value[:64] for name, value in held.items()}
        self.figures: list[dict[str, float]] = []

    def __call__(self, dmt: Dmt) -> float:
        """Score; fewer bits are a higher score."""
        self.figures.append(_figures(dmt.rnn, self.held))
        return -self.figures[-1]["bits"]

    def points(self, outcome: Outcome) -> list[dict[str, float]]:
        """Return the figures with the CPU seconds at which each was taken."""
        times = [seconds for seconds, _ in outcome.scores]
        return [{"seconds": t, **f} for t, f in zip(times, self.figures, strict=True)]


def _figures(rnn: RNN, held: Batch) -> dict[str, float]:
    return {"bits": rnn_score(rnn, held).bits, "drift": label_drift(rnn, held).nmse}


def _used(outcome: Outcome) -> dict[str, float]:
    return {"seconds": outcome.seconds, "steps": outcome.steps, "tokens": outcome.tokens}


def jobs(seconds: Mapping[int, float], scale: float, *, quick: bool) -> Jobs:
    """Return what is measured on the first seed, the long ones first."""
    found: Jobs = {}
    for length in seconds:
        limit = scale * seconds[length]
        modes = MODES if length in {32, 128} or not quick else ("parallel",)
        found[f"smt_L{length}"] = partial(smt, length, limit, modes=modes)
        found[f"smt_unrolled_L{length}"] = partial(smt_unrolled, length, limit)
        found |= _unrolled(length, limit, quick=quick)
    if quick:
        found["smt_L32"] = partial(smt, 32, scale * DMT_SECONDS, modes=MODES)
    for encoder in get_args(EncoderKind):
        found[f"encoder_{encoder}"] = partial(encoders, encoder, scale * ENCODER_SECONDS)
    found["counted"] = partial(counted)
    return found


def _unrolled(length: int, limit: float, *, quick: bool, seed: int = 0) -> Jobs:
    """Return each training by BPTT."""
    ways: dict[str, dict[str, Any]] = {f"bptt_L{length}": {}}
    if length > 2 * CUT:
        ways[f"bptt_truncated_L{length}"] = {"mode": "truncated", "span": CUT}
    found: Jobs = {}
    for rate in RATES:
        train = partial(bptt, length, limit, rate, seed)
        for name, unroll in ways.items():
            found[f"{name}-rate{rate:g}"] = partial(train, **unroll)
        for visits in () if quick else (VISITS, length / SPAN):
            name = f"bptt_parallel_L{length}-rate{rate:g}-visits{visits:g}"
            found[name] = partial(train, mode="parallel", span=SPAN, visits=visits)
    return found


def again(
    results: Mapping[str, Result], seconds: Mapping[int, float], scale: float, seed: int
) -> Jobs:
    """Return what is measured on a further seed: SMT, and BPTT at the best of its settings."""
    best, made = set(best_settings(results).values()), Jobs()
    for length in seconds:
        limit = scale * seconds[length]
        made[f"smt_L{length}"] = partial(smt, length, limit, seed=seed)
        made[f"smt_unrolled_L{length}"] = partial(smt_unrolled, length, limit, seed=seed)
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
    tried: dict[str, list[str]] = {}
    for setting in by_setting(results):
        if setting.startswith("bptt"):
            tried.setdefault(setting.partition("-")[0], []).append(setting)
    return {
        name: min(settings, key=lambda setting: results[setting]["bits"])
        for name, settings in tried.items()
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
        if name.startswith("smt"):
            own = [r if name.startswith("smt_unrolled") else r["parallel"] for r in made]
            found[name] = [result["bits"] for result in own]
    return found


def figures(results: Mapping[str, Result]) -> dict[str, Any]:
    """Return the named figures: bits of SMT and BPTT are means over their seeds."""
    rate = results["labels"]
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
        help="file of results (docs/results/method.json; --quick: a new one)",
    )
    parser.add_argument("--seeds", type=int, default=2, help="of SMT, and BPTT's best settings")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    options = parser.parse_args(arguments)
    seconds, scale = QUICK if options.quick else SECONDS, options.scale
    with tempfile.TemporaryDirectory(prefix="smt-ray-method-") as fresh:
        own = Path(fresh) if options.quick else RESULTS
        file = options.results or own / "method.json"
        labels = {"labels": partial(label_rates, scale * TURN)}
        made = measure(labels, file)  # alone: another process takes of the memory's bandwidth
        made |= measure(jobs(seconds, scale, quick=options.quick), file)
        for seed in range(1, 1 if options.quick else options.seeds):
            made |= measure(again(made, seconds, scale, seed), file)
        print(json.dumps(figures(made)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
