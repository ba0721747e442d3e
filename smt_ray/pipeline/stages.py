"""The stages of a run: their order, what each is made from, and what decides its result."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from smt_ray.config import DataConfig, RunConfig, anonymous, on_texts
from smt_ray.data import sources
from smt_ray.pipeline.artifacts import fingerprint


def upstream(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Return the stages of a run in order, and what each is made from."""
    finetune, bptt = config.finetune.enabled, config.bptt.enabled
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


def settings(
    config: RunConfig, identity: Callable[[DataConfig], str] = sources.identity
) -> dict[str, dict[str, Any]]:
    """Return the scientific settings that each stage adds to those of what it is made from.

    `identity` looks at every file of the source; who plans many runs at once need not look anew for
    each.
    """
    return {
        "tokens": on_texts(anonymous, _source(config.data)) | {"content": identity(config.data)},
        "teacher": {name: asdict(getattr(config, name)) for name in ("model", "loss", "teacher")},
        "labels": asdict(config.labels),
        "transition": asdict(config.transition) | _rnn(config),
        "dmt": asdict(config.dmt),
        "finetune": asdict(config.finetune),
        "bptt": {"model": asdict(config.rnn_model), "bptt": asdict(config.bptt)},
        "export": {},
        "evaluate": asdict(config.evaluation),
    }


def _source(config: DataConfig) -> dict[str, Any]:
    """Return a source's settings; its tokenizer counts by content, wherever it lies."""
    return {name: value for name, value in asdict(config).items() if name != "tokenizer"}


def _rnn(config: RunConfig) -> dict[str, Any]:
    """Return what a run's transition settings come to, whether they name the cell or leave it."""
    model = config.rnn_model
    cell = {name: getattr(model, name) for name in ("cell", "cell_depth", "write_gate")}
    return cell | {"warm_start": config.warm_start}


def fingerprints(
    config: RunConfig, identity: Callable[[DataConfig], str] = sources.identity
) -> dict[str, str]:
    """Return the fingerprint of every stage's artifact, which need not be there yet."""
    marks: dict[str, str] = {}
    own = settings(config, identity)
    for stage, names in upstream(config).items():
        marks[stage] = fingerprint(stage, own[stage], [marks[name] for name in names])
    return marks
