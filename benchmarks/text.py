"""SMT, its parts and BPTT on text, in this process, each within so many CPU-seconds.

Bits are bits per byte of a rollout from the empty memory on held-out text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.budget import Outcome, Scoring
from benchmarks.corpus import Corpus
from benchmarks.pool import Result
from benchmarks.smt import (
    FULL,
    Labelled,
    Shares,
    label_drift,
    one_step_gradients,
    rnn_score,
    seeded,
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
from smt_ray.pipeline.recipes import on_text

TOKENS_A_STEP = 1024
"""Inputs in a step of every method and length."""
LABEL_SHAPE = ModelConfig(width=256, memory_tokens=16, heads=8, encoder_depth=8)
"""The shape at which encoders label, L = 256; the causal one with two register blocks, too."""
TURNS = 5
"""Turns of each encoder at labelling."""
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

    DMT has gradients of one step, or the preset's (`unroll`).

    The bidirectional encoder makes the memories of sampled timesteps alone, of which a forward has
    fewer than a slot has directions: its dynamics are whitened by slot.
    """
    rows = max(1, TOKENS_A_STEP // length)
    config = seeded(on_text("tiny"), seed).override("data.sequence_length", length)
    config = config if unroll else one_step_gradients(config, ONE_STEP_RATE)
    if encoder == "bidirectional":
        loss = {"dense": False, "whiten_dynamics": "slots"}
        config = config.update({"model": {"encoder": encoder}, "loss": loss})
    for stage in ("teacher", "transition.train", "dmt.train"):
        config = config.override(f"{stage}.global_batch", rows)
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
    left = seconds - trained.seconds
    dmt, outcome = train_dmt(config, source, trained, config.dmt, left)
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


def smt_unrolled(
    length: int, seconds: float, *, model: Mapping[str, Any] | None = None, seed: int = 0
) -> Result:
    """Train SMT within `seconds`, its DMT unrolled as the preset has it, the model changed so."""
    config = settings(length, unroll=True, seed=seed).update({"model": model or {}})
    source = Corpus(config.data, seed)
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


def bptt(
    length: int,
    seconds: float,
    rate: float,
    mode: BpttConfig = FULL,
    *,
    batch: int | None = None,
    seed: int = 0,
) -> Result:
    """Train the same cell and readout by unrolling, as `mode` says.

    A step has `TOKENS_A_STEP` inputs, or `batch` sequences.
    """
    config = settings(length, seed=seed)
    source = Corpus(config.data, seed)
    batch = batch or config.teacher.global_batch
    optimisation = replace(config.teacher, learning_rate=rate, global_batch=batch)
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


def _figures(rnn: RNN, labels: Labelled) -> dict[str, float]:
    return {"bits": rnn_score(rnn, labels.batch).bits, "drift": label_drift(rnn, labels).nmse}


def _used(outcome: Outcome) -> dict[str, float]:
    return {"seconds": outcome.seconds, "steps": outcome.steps, "tokens": outcome.tokens}
