"""The stages of a run: their order, what each is made from, and what decides its result."""

import hashlib
import inspect
import sys
from dataclasses import replace
from typing import Any

from smt_ray.config import ModelConfig, RunConfig, changed
from smt_ray.data.source_plan import FORMAT
from smt_ray.data.storage import Location
from smt_ray.model.cells import CELLS, cell_class
from smt_ray.pipeline.artifacts import MANIFEST, fingerprint, location_of, read_manifest

VERSIONS = {
    "tokens": FORMAT,
    "teacher": 2,
    "labels": 2,
    "transition": 2,
    "dmt": 2,
    "finetune": 2,
    "bptt": 2,
    "export": 1,
    "evaluate": 3,
}
"""What each stage means: raised when the same settings come to another result, or a default that a
fingerprint leaves out is changed."""


def upstream(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Return the stages of a run in order, and what each is made from."""
    trained = config.stages()
    finetune, bptt = "finetune" in trained, "bptt" in trained
    stages: dict[str, tuple[str, ...]] = {
        "tokens": (),
        "teacher": ("tokens",),
        "labels": ("tokens", "teacher"),
        "transition": ("labels", "teacher"),
        "dmt": ("labels", "teacher", "transition"),
    }
    if finetune:
        stages["finetune"] = ("tokens", "dmt")
    if bptt:
        stages["bptt"] = ("tokens",)
    stages["export"] = ("finetune" if finetune else "dmt", "tokens")
    stages["evaluate"] = ("export", "dmt", *(("bptt",) if bptt else ()))
    return stages


def settings(config: RunConfig, source: str) -> dict[str, dict[str, Any]]:
    """Return the scientific settings that each stage adds to those of what it is made from.

    Fields at their default are left out, so that one that is added later changes no fingerprint.

    Args:
        config: the run.
        source: the fingerprint of its source.
    """
    train = {
        stage: {"train": changed(replace(found, skip_nonfinite=0))}  # a run goes on with more
        for stage, found in config.stages().items()
    }
    unroll = {"unroll": changed(config.unroll)}
    loss = replace(config.loss, group=config.group)
    own = {name: changed(getattr(config, name)) for name in ("teacher", "transition", "dmt")}
    cell = {"warm_start": config.warm_start, **_cell(config.rnn_model)}
    found: dict[str, dict[str, Any]] = {
        "tokens": {"source": source},
        "teacher": {
            "model": changed(config.model),
            "loss": changed(loss),
            "dense": config.dense,
            **_rest(own["teacher"]),
            **_cell(config.model),
        },
        "labels": _rest(changed(config.labels), "mode"),  # streamed ones are the same
        "transition": _rest(own["transition"], "warm_start", "cell", "cell_depth") | cell,
        "dmt": _rest(own["dmt"]) | {"readout": config.experimental.readout},
        "finetune": unroll,
        "bptt": {"model": changed(config.rnn_model), **_cell(config.rnn_model), **unroll},
        "export": {},
        "evaluate": changed(config.evaluation) | {"seed": config.seed},
    }
    return {stage: found[stage] | train.get(stage, {}) for stage in upstream(config)}


def _rest(fields: dict[str, Any], *also: str) -> dict[str, Any]:
    """Return the fields of a stage that its optimisation does not hold already."""
    known = {"steps", "global_batch", "learning_rate", *also}
    return {name: value for name, value in fields.items() if name not in known}


def _cell(model: ModelConfig) -> dict[str, Any]:
    """Return what decides a cell: its kind and depth, and the source text of one of your own."""
    cell: dict[str, Any] = {"cell": model.cell, "cell_depth": model.cell_depth}
    if model.cell not in CELLS:
        text = inspect.getsource(sys.modules[cell_class(model.cell).__module__])
        cell["source"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cell


def fingerprints(config: RunConfig, source: str, tokens: str = "") -> dict[str, str]:
    """Return the fingerprint of every stage's artifact, which need not be there yet.

    Args:
        config: the run.
        source: the fingerprint of its source.
        tokens: the digest of its token shards, by which all later stages know them. Without it, its
            place is taken by what is known of the source: so two runs agree where they will.
    """
    own, known = settings(config, source), dict[str, str]()
    found: dict[str, str] = {}
    for stage, names in upstream(config).items():
        inputs = [known[name] for name in names]
        found[stage] = fingerprint(stage, VERSIONS[stage], own[stage], inputs)
        known[stage] = tokens or found[stage] if stage == "tokens" else found[stage]
    return found


def locations(config: RunConfig, source: str, storage: Location) -> dict[str, Location]:
    """Return where the artifacts of a run lie; those of stages after `tokens` once that is made.

    Args:
        config: the run.
        source: the fingerprint of its source.
        storage: the root of all runs.
    """
    own = fingerprints(config, source)["tokens"]
    tokens = location_of(storage, "tokens", own)
    if not (tokens / MANIFEST).exists():
        return {"tokens": tokens}
    found = fingerprints(config, source, read_manifest(tokens)["figures"]["digest"])
    return {stage: location_of(storage, stage, mark) for stage, mark in found.items()}
