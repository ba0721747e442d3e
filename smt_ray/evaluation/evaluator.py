"""The stage `evaluate`: a process with the trainer's resources, never work of the driver.

Shapes: L sequence.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smt_ray.cluster.process import run_alone
from smt_ray.config import RunConfig
from smt_ray.data.export import load_rnn
from smt_ray.data.manifest import open_manifest
from smt_ray.data.reader import Reader
from smt_ray.data.rows import Batch
from smt_ray.data.storage import Location
from smt_ray.data.synthetic import task_of
from smt_ray.evaluation.budget import rows_at_once
from smt_ray.evaluation.gallery import gallery
from smt_ray.evaluation.geometry import Plane
from smt_ray.evaluation.gradients import last_only, supervised_gradients, unrolled_gradients
from smt_ray.evaluation.held_out import HeldOut
from smt_ray.evaluation.networks import Networks, load_networks
from smt_ray.evaluation.next_k import next_k
from smt_ray.evaluation.ngrams import NgramModel
from smt_ray.evaluation.scores import Score, compare, score_rollouts
from smt_ray.model.rnn import RNN
from smt_ray.objectives.objective import IGNORED
from smt_ray.tasks.task import UNKNOWN

UNITS = {"text": "bits per byte", "pixels": "bits per pixel", "task": "accuracy"}
"""What the main score of each kind of source is."""
ORDERS = (0, 1, 2)
COUNTED = 1 << 26
"""Training tokens from which reference models count."""
UNROLLED = 8
"""Sequences whose gradients are taken."""
AHEAD = 64
"""Sequences of which later targets are told."""
POINTS = 400
"""Memories in a plot."""
IMAGES = 8
"""Images that are completed."""
PROMPT = 64
"""Tokens of a validation sequence that begin the sample."""


def evaluate(config: RunConfig, locations: dict[str, Location]) -> dict[str, Any]:
    """Score the run on validation sequences; `locations` are the artifacts' by stage.

    Returns:
        `unit`; by model's name `scores` in it, `bits`, `accuracy`, `long_scores` (over four times
        the length), `drift`, `gradients`, `geometry`; `curves`, `long_curves` and `drift_curves` by
        position; `sample` of a text, `images` of pixels. What a source does not have is empty.
    """
    return run_alone("evaluate", config.runtime, score_run, config, locations)


def score_run(config: RunConfig, locations: dict[str, Location], threads: int) -> dict[str, Any]:
    """Do the work of `evaluate` in this process, with so many CPU threads."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if config.runtime.gpu else "cpu")
    held_out = HeldOut(config, locations["tokens"] / "validation")
    networks = load_networks(config, locations, held_out.manifest["vocabulary"], device)
    rnns, kind = networks.rnns, config.data.kind
    scores, drifts = compare(networks.encoder, networks.readouts, rnns, held_out.batches(), device)
    drifts.pop("bptt", None)  # its memories are its own: the labels are no target for them
    long = score_rollouts(rnns, held_out.longer(), device)
    long = {name: score for name, score in long.items() if score.covered}
    bits = {name: score.bits for name, score in scores.items()}
    curves = {name: _curve(score, kind) for name, score in scores.items()}
    if kind == "text":
        for name, total in _ngrams(locations["tokens"] / "train", held_out).items():
            per_unit = total / scores["teacher"].covered
            bits[name] = float(per_unit.sum())
            curves[name] = (per_unit * len(per_unit)).tolist()
    accuracy = {name: score.accuracy for name, score in scores.items()}
    first = next(held_out.batches())
    return {
        "unit": UNITS[kind],
        "scores": accuracy if kind == "task" else bits,
        "bits": bits,
        "accuracy": accuracy,
        "curves": curves,
        "long_scores": {name: _value(score, kind) for name, score in long.items()},
        "long_curves": {name: _curve(score, kind) for name, score in long.items()},
        "drift": {name: drift.nmse for name, drift in drifts.items()},
        "drift_curves": {name: _listed(drift.curve) for name, drift in drifts.items()},
        "gradients": _gradients(config, networks, first, device),
        "next_k": _next_k(config, networks, first, device),
        "geometry": _geometry(config, networks, first, device) if kind == "task" else {},
        "sample": _sample(config, locations, first, device) if kind == "text" else {},
        "images": _images(config, rnns["rnn"], held_out, device) if kind == "pixels" else {},
        "parameters_rnn": sum(p.numel() for p in rnns["rnn"].parameters()),
    }


def _value(score: Score, kind: str) -> float:
    return score.accuracy if kind == "task" else score.bits


def _curve(score: Score, kind: str) -> list[float | None]:
    return _listed(score.accuracy_curve if kind == "task" else score.curve)


def _listed(curve: Float[Tensor, " L"]) -> list[float | None]:
    """Return a curve for JSON, which knows no NaN."""
    return [None if math.isnan(value) else value for value in curve.tolist()]


def _gradients(
    config: RunConfig, networks: Networks, batch: Batch, device: torch.device
) -> dict[str, list[float]]:
    """Return gradient norms by timestep: RNNs unrolled, and the teacher with every m_t a leaf.

    The loss is that of all targets; of a task, of the last one, which shows how far it reaches.
    """
    sums: dict[str, Tensor] = {}
    parts = list(_sequences(config, batch, UNROLLED, device))
    for inputs, targets in parts:
        if config.data.kind == "task":
            targets = last_only(targets)
        with torch.no_grad():
            memory = networks.encoder(inputs)
        found = {
            "teacher": supervised_gradients(
                memory, networks.decoder, networks.cell, inputs, targets, config.loss
            )
        }
        for name in networks.rnns.keys() & {"rnn", "bptt"}:
            found[name] = unrolled_gradients(networks.rnns[name], inputs, targets)
        for name, curve in found.items():
            sums[name] = sums.get(name, torch.zeros_like(curve)) + curve * len(inputs)
    count = sum(len(inputs) for inputs, _ in parts)
    return {name: (total / count).tolist() for name, total in sums.items()}


def _sequences(
    config: RunConfig, batch: Batch, count: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets of the first sequences of a batch, as many at once as fit."""
    size = rows_at_once(config.model, batch["inputs"].shape[1], device)
    inputs, targets = (batch[name][:count].to(device) for name in ("inputs", "targets"))
    yield from zip(inputs.split(size), targets.split(size), strict=True)


@torch.inference_mode()
def _next_k(
    config: RunConfig, networks: Networks, batch: Batch, device: torch.device
) -> dict[str, list[float | None]]:
    """Return what the decoder tells of later targets from the memories of teacher and RNN."""
    targeted = int((batch["targets"] != IGNORED).sum())
    units = int(batch["bytes"].sum()) / targeted if "bytes" in batch else 1.0
    scores = {"teacher": Score(), "rnn": Score()}
    for inputs, targets in _sequences(config, batch, AHEAD, device):
        asked = networks.decoder, inputs, targets, config.loss.horizon, units
        scores["teacher"].merge(next_k(networks.encoder(inputs), *asked))
        scores["rnn"].merge(next_k(networks.rnns["rnn"].rollout(inputs), *asked))
    return {name: _curve(score, config.data.kind) for name, score in scores.items()}


@torch.inference_mode()
def _geometry(
    config: RunConfig, networks: Networks, batch: Batch, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Return points of memories of known state in the teacher's plane, for teacher and RNN."""
    data = config.data
    state = task_of(data).state(data.task, batch["inputs"], batch["targets"]).flatten()
    known = (state != UNKNOWN).nonzero()[:, 0]
    if not len(known):
        return {}
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    chosen = known[order[:POINTS]]
    inputs = batch["inputs"].to(device)
    own = {"teacher": networks.encoder(inputs), "rnn": networks.rnns["rnn"].rollout(inputs)}
    memories = {name: memory.flatten(0, 1)[chosen.to(device)] for name, memory in own.items()}
    plane = Plane(memories["teacher"])
    points = {}
    for name, memory in memories.items():
        x, y = plane.project(memory).T.tolist()
        points[name] = {"x": x, "y": y, "state": state[chosen].tolist()}
    return points


def _images(config: RunConfig, rnn: RNN, held_out: HeldOut, device: torch.device) -> dict[str, Any]:
    """Let the RNN draw images, and complete halves of validation images."""
    truth = next(held_out.batches())["targets"][:IMAGES].to(device)
    temperature, seed = config.evaluation.temperature, config.seed
    return gallery(rnn, truth, held_out.manifest["image"], temperature, seed)


def _sample(
    config: RunConfig, locations: dict[str, Location], batch: Batch, device: torch.device
) -> dict[str, str]:
    """Let the exported RNN write on after the beginning of a validation sequence."""
    settings, rnn = config.evaluation, load_rnn(locations["export"]).to(device)
    prompt = rnn.tokenizer.decode(batch["inputs"][0, :PROMPT].numpy())
    random = torch.Generator(device).manual_seed(config.seed)
    pieces = rnn.write(
        prompt, settings.sample_length, temperature=settings.temperature, generator=random
    )
    return {"prompt": prompt, "text": "".join(pieces)}


def _ngrams(train: Location, held_out: HeldOut) -> dict[str, Float[np.ndarray, " L"]]:
    """Return the bits by position, summed over the sequences that are scored, of order-n models."""
    manifest = held_out.manifest
    model = NgramModel.fit(_windows(train), manifest["vocabulary"], max(ORDERS))
    totals = {f"order{order}": np.zeros(manifest["sequence_length"]) for order in ORDERS}
    for batch in held_out.batches():
        windows = torch.cat((batch["inputs"], batch["targets"][:, -1:]), dim=1).numpy()
        for order in ORDERS:
            totals[f"order{order}"] += model.bits(windows, order)[0] * len(windows)
    return totals


def _windows(directory: Location) -> Iterator[Any]:
    """Yield token windows of a split, `COUNTED` tokens at most, drawn from all of it."""
    manifest = open_manifest(directory, "tokens")
    size = min(manifest["row_group_rows"], manifest["sequences"])
    reader = Reader(directory, manifest, global_batch=size, seed=0, lanes=1)
    most = max(1, COUNTED // (size * manifest["sequence_length"]))
    for step in range(min(reader.order.steps_per_epoch, most)):
        batch = reader.batch(step)
        yield torch.cat((batch["inputs"], batch["targets"][:, -1:]), dim=1).numpy()
