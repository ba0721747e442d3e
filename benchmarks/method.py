"""The parts of the method against each other, on text, at equal CPU time or equal steps.

python -m benchmarks.method [--quick] [--results DIR] [--scale X]

Which encoder labels faster and teaches more; what each mode of DMT brings; where SMT and BPTT cross
as sequences grow. Each measurement leaves one JSON file, and a second run makes only the missing
ones. Prints, last, one line of JSON; `*_bits` are bits per byte of a rollout from the empty memory.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.budget import Outcome, Scoring
from benchmarks.corpus import Corpus
from benchmarks.pool import Result, measure
from benchmarks.smt import (
    FULL,
    Labelled,
    Shares,
    label_drift,
    one_step_gradients,
    rnn_score,
    teacher_score,
    train_bptt,
    train_dmt,
    train_teacher,
)
from benchmarks.timer import now
from smt_ray.config import BpttConfig, EncoderKind, ModelConfig, RunConfig
from smt_ray.evaluation.ngrams import NgramModel
from smt_ray.model.encoder import build_encoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.dmt import Dmt
from smt_ray.recipes import on_text

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "method"
TOKENS_A_STEP = 1024
"""Inputs in a step of every method and length."""
RATES = (8e-3, 4e-3, 2e-3)
"""Peak learning rates of BPTT; the teacher has the preset's, 4e-3."""
MODES = ("one_step", "sequential", "parallel")
LABEL_SHAPE = ModelConfig(width=256, memory_tokens=16, heads=8, encoder_depth=8)
"""The shape at which encoders label, L = 256."""
TURNS = 3
"""Turns of each encoder at labelling."""
ONE_STEP_RATE = 4e-3
"""Peak rate of DMT with gradients of one step."""
UNROLLED = Shares(teacher=0.5, labels=0.1)
SPAN = 8
"""Timesteps of a part in `bptt_parallel`, as many as the preset's `dmt.depth`."""
LABELLED = 2048
EVERY = 4.0
"""CPU seconds between two scores on the way."""


def settings(length: int, encoder: EncoderKind = "causal", *, unroll: bool = False) -> RunConfig:
    """Return the preset `tiny` for sequences of `length`, with `TOKENS_A_STEP` in every step.

    DMT has gradients of one step, or the preset's (`unroll`).

    The bidirectional encoder makes the memories of sampled timesteps alone, of which a forward has
    fewer than a slot has directions: its dynamics are whitened by slot.
    """
    rows = max(1, TOKENS_A_STEP // length)
    config = on_text("tiny").override("data.sequence_length", length)
    config = config if unroll else one_step_gradients(config, ONE_STEP_RATE)
    if encoder == "bidirectional":
        loss = {"dense": False, "whiten_dynamics": "slots"}
        config = config.update({"model": {"encoder": encoder}, "loss": loss})
    for stage in ("teacher", "transition.train", "dmt.train"):
        config = config.override(f"{stage}.global_batch", rows)
    return config.override("runtime.workers", 1)


def label_rates(seconds: float) -> Result:
    """Return the labels a second of each encoder of `LABEL_SHAPE`, L = 256.

    They take turns of at least `seconds`, so that whatever else the machine does slows both alike.
    """
    torch.manual_seed(0)
    kinds = get_args(EncoderKind)
    networks = {kind: build_encoder(replace(LABEL_SHAPE, encoder=kind), 256) for kind in kinds}
    tokens = torch.randint(256, (1, 256))
    made, used = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    with torch.inference_mode():
        for turn in range(1 + TURNS):
            for kind, network in networks.items():
                labels, began = 0, now()
                while not labels or now() - began < seconds:
                    labels += network(tokens).shape[:2].numel()
                if turn:  # the first one warms up
                    made[kind] += labels
                    used[kind] += now() - began
    return {kind: made[kind] / used[kind] for kind in kinds}


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
    left = seconds - trained.seconds
    dmt, outcome = train_dmt(config, source, trained, config.dmt, left)
    return {
        "bits": rnn_score(dmt.rnn, source.held_out()).bits,
        "teacher_bits": teacher_score(trained.teacher, source.held_out()).bits,
        "teacher_steps": trained.stages["teacher"].steps,
        "labels": trained.stages["labels"].tokens,
        "seconds": trained.seconds + outcome.seconds,
    }


def smt(length: int, seconds: float, *, modes: Sequence[str] = ("parallel",)) -> Result:
    """Train SMT within `seconds`; then the other modes of DMT with as many steps each."""
    config = settings(length)
    source = Corpus(config.data)
    held = source.held_out()
    trained = train_teacher(config, source, seconds, Shares(), LABELLED * 128 // length)
    labels = Labelled(trained.teacher.encoder, held)
    before, _ = train_dmt(config, source, trained, config.dmt, 0.0)
    result: Result = {
        "teacher_bits": teacher_score(trained.teacher, held).bits,
        "before_dmt": _figures(before.rnn, labels),
        "seconds_before_dmt": trained.seconds,
    }
    left, steps = seconds - trained.seconds, float("inf")
    for mode in sorted(modes, key=lambda mode: mode != "parallel"):
        dmt = config.override("dmt.mode", mode).dmt
        track = Track(labels)
        limit = left if mode == "parallel" else 8 * left
        scoring = Scoring(track, every=EVERY) if len(modes) > 1 else None
        objective, outcome = train_dmt(
            config, source, trained, dmt, limit, steps=steps, scoring=scoring
        )
        steps = min(steps, outcome.steps)
        result[mode] = {**_figures(objective.rnn, labels), **_used(outcome)}
        if len(modes) > 1:
            result[mode]["track"] = track.points(outcome)
    return result


def smt_unrolled(length: int, seconds: float) -> Result:
    """Train SMT within `seconds`, its DMT unrolled as the preset has it."""
    config = settings(length, unroll=True)
    source = Corpus(config.data)
    held = source.held_out()
    trained = train_teacher(config, source, seconds, UNROLLED, LABELLED * 128 // length)
    labels = Labelled(trained.teacher.encoder, held)
    left = seconds - trained.seconds
    objective, outcome = train_dmt(config, source, trained, config.dmt, left)
    return {
        "teacher_bits": teacher_score(trained.teacher, held).bits,
        "seconds_before_dmt": trained.seconds,
        **_figures(objective.rnn, labels),
        **_used(outcome),
    }


def bptt(length: int, seconds: float, rate: float, mode: BpttConfig = FULL) -> Result:
    """Train the same cell and readout by unrolling, as `mode` says."""
    config = settings(length)
    source = Corpus(config.data)
    optimisation = replace(config.teacher, learning_rate=rate)
    rnn, outcome = train_bptt(config.model, source, optimisation, seconds, mode=mode)
    return {"bits": rnn_score(rnn, source.held_out()).bits, "rate": rate, **_used(outcome)}


class Track:
    """Bits and drift on the way: what a mode has reached after so many seconds."""

    def __init__(self, labels: Labelled) -> None:
        """Score against `labels`, a part of them."""
        self.labels, self.figures = labels.first(64), list[dict[str, float]]()

    def __call__(self, dmt: Dmt) -> float:
        """Score; fewer bits are a higher score."""
        self.figures.append(_figures(dmt.rnn, self.labels))
        return -self.figures[-1]["bits"]

    def points(self, outcome: Outcome) -> list[dict[str, float]]:
        """Return the figures with the CPU seconds at which each was taken."""
        times = [seconds for seconds, _ in outcome.scores]
        return [{"seconds": t, **f} for t, f in zip(times, self.figures, strict=True)]


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


def _figures(rnn: RNN, labels: Labelled) -> dict[str, float]:
    return {"bits": rnn_score(rnn, labels.batch).bits, "drift": label_drift(rnn, labels).nmse}


def _used(outcome: Outcome) -> dict[str, float]:
    return {"seconds": outcome.seconds, "steps": outcome.steps, "tokens": outcome.tokens}


def jobs(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured, the long ones first."""
    scale, quick = options.scale, options.quick
    lengths = {128: 240.0, 512: 320.0} if quick else {32: 300.0, 128: 300.0, 256: 300.0, 512: 400.0}
    found: dict[str, Any] = {}
    for length, seconds in lengths.items():
        modes = MODES if length in {32, 128} or not quick else ("parallel",)
        found[f"smt_L{length}"] = partial(smt, length, scale * seconds, modes=modes)
        found[f"smt_unrolled_L{length}"] = partial(smt_unrolled, length, scale * seconds)
        unrolled = {"bptt": FULL}
        if length > 128:
            unrolled["bptt_truncated"] = BpttConfig(mode="truncated", span=64)
        if not quick:  # a visit for each part, so that its states are a rollout's
            unrolled["bptt_parallel"] = BpttConfig(mode="parallel", span=SPAN, visits=length / SPAN)
        for kind, mode in unrolled.items():
            for rate in RATES:
                name = f"{kind}_L{length}-rate{rate:g}"
                found[name] = partial(bptt, length, scale * seconds, rate, mode)
    if quick:
        found["smt_L32"] = partial(smt, 32, scale * 90.0, modes=MODES)
    for encoder in get_args(EncoderKind):
        found[f"encoder_{encoder}"] = partial(encoders, encoder, scale * 150.0)
    found["labels"] = partial(label_rates, scale * 5.0)
    found["counted"] = counted
    return found


def figures(results: dict[str, Result]) -> dict[str, Any]:
    """Return the named figures; of several rates of BPTT the best counts."""
    rate = results["labels"]
    found: dict[str, Any] = {
        "labels_causal_over_bidirectional": rate["causal"] / rate["bidirectional"],
        "bits_causal": results["encoder_causal"]["bits"],
        "bits_bidirectional": results["encoder_bidirectional"]["bits"],
        **{f"{name}_bits": results["counted"][name] for name in ("order1", "order2")},
    }
    for mode in ("before_dmt", *MODES):
        for name in ("bits", "drift"):
            found[f"{name}_{mode}"] = results["smt_L128"][mode][name]
    for name, result in results.items():
        kind, _, length = name.partition("-")[0].rpartition("_")
        if kind == "smt":
            found[f"smt_bits_{length}"] = result["parallel"]["bits"]
            if "sequential" in result:
                found[f"dmt_speedup_{length}"] = speedup(result)
        elif kind.startswith(("smt_", "bptt")):
            key = f"{kind}_bits_{length}"
            found[key] = min(found.get(key, result["bits"]), result["bits"])
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two lengths, anew")
    parser.add_argument("--results", type=Path, help="directory of results (docs/results/method)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all CPU seconds")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="smt-ray-method-") as fresh:
        directory = options.results or (Path(fresh) if options.quick else RESULTS)
        print(json.dumps(figures(measure(jobs(options), directory))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
