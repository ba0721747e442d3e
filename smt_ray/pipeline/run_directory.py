"""The run directory: settings, summary, metrics, exported RNN and report of one named run."""

import json
import platform
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch
import yaml

from smt_ray.cluster.resources import here, resolved
from smt_ray.config import RunConfig, anonymous, leaves, masked, on_texts
from smt_ray.data.curriculum import lengths
from smt_ray.data.storage import Location
from smt_ray.data.weights import load_weights
from smt_ray.pipeline.artifacts import Artifact
from smt_ray.pipeline.planning import parameters
from smt_ray.report.panels import Report
from smt_ray.report.run_report import write_report
from smt_ray.report.table import key_of
from smt_ray.train.metrics import read_metrics

RUNTIME = ("runtime.", "name", "storage", "preset")
"""Beginnings of the fields that may change under an existing name."""
TRAINED = ("teacher", "transition", "dmt", "finetune", "bptt")
SHOWN = ("curves", "long_curves", "gradients", "next_k", "geometry", "images", "sample")
"""Parts of the scores that the report shows as they are."""


def check_same_run(config: RunConfig, directory: Location, overwrite: bool) -> None:
    """Refuse to continue a run under other scientific settings.

    Raises:
        ValueError: naming the first field that differs, unless `overwrite`.
    """
    saved = directory / "config.yaml"
    if overwrite or not saved.exists():
        return
    before = leaves(read_config(saved))
    for name, value in leaves(config).items():
        same = on_texts(anonymous, before[name]) == on_texts(anonymous, value)
        if not name.startswith(RUNTIME) and not same:
            raise ValueError(
                f"{name}={masked(value)}: run {config.name!r} has {name}={masked(before[name])}; "
                "choose another --name, or give --overwrite to point this name at a new run"
            )


def read_config(file: Location) -> RunConfig:
    """Return the settings in the `config.yaml` of a run.

    Raises:
        ValueError: in one line that names the file, if it is damaged.
    """
    try:
        return RunConfig.from_dict(yaml.safe_load(file.read_text()))
    except (yaml.YAMLError, ValueError) as error:
        raise file.damaged(error, "give --overwrite to write it anew") from error


def write_run(
    config: RunConfig, directory: Location, made: dict[str, Artifact], seconds: float
) -> dict[str, Any]:
    """Write everything into the run directory; return the summary."""
    scores = (made["evaluate"].location / "scores.json").read_json()
    metrics = {stage: read_metrics(made[stage].location) for stage in TRAINED if stage in made}
    summary = _summary(config, made, scores, seconds)
    (directory / "artifacts.json").write_json(
        {stage: f"{a.stage}-{a.fingerprint}" for stage, a in made.items()}
    )
    export = made["export"].location
    load_weights(export)  # a damaged one is named, not copied
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (export / name).copy_to((directory / "rnn").make_dir() / name)
    rows = [json.dumps(row) + "\n" for stage_rows in metrics.values() for row in stage_rows]
    (directory / "metrics.jsonl").write_text("".join(rows))
    (directory / "summary.json").write_json(summary)
    stages = [
        {
            "stage": stage,
            "artifact": artifact.location.name,
            "reused": artifact.reused,
            "seconds": artifact.manifest["seconds"],
        }
        | ({"steps": artifact.figures["steps"]} if stage in metrics else {})
        for stage, artifact in made.items()
    ]
    write_report(
        directory,
        Report(
            summary=summary,
            stages=stages,
            drift=scores["drift_curves"],
            metrics=metrics,
            **{name: scores[name] for name in SHOWN},
            config=config.to_dict(),
            environment=environment(config),
        ),
    )
    return summary


def _summary(
    config: RunConfig, made: dict[str, Artifact], scores: dict[str, Any], seconds: float
) -> dict[str, Any]:
    drift, labels = scores["drift"], made["labels"].figures
    length = config.data.sequence_length
    figures = {stage: made[stage].figures for stage in ("teacher", "transition")}
    return {
        "name": config.name,
        "preset": config.preset,
        "source": masked(config.data.source),
        "unit": scores["unit"],
        "tokens_source": made["tokens"].figures["sequences"]["train"] * length,
        **{f"tokens_{stage}": count for stage, count in trained_tokens(config).items()},
        "parameters_rnn": scores["parameters_rnn"],
        "parameters_teacher": parameters(config, made["tokens"].figures["vocabulary"])["teacher"],
        **dict.fromkeys(("bptt_bits", "order0_bits", "order1_bits", "order2_bits")),
        **_model_figures(scores),
        **{f"drift{name.removeprefix('rnn')}": nmse for name, nmse in drift.items()},
        "labels": labels["labels"],
        "labels_per_s": labels["labels_per_s"],
        "transitions_per_s": figures["transition"]["tokens_per_s"],
        "tokens_per_s": figures["teacher"]["tokens_per_s"],
        "wall_seconds": seconds,
        "resumed": any(artifact.reused or artifact.resumed for artifact in made.values()),
    } | {f"seconds_{stage}": artifact.manifest["seconds"] for stage, artifact in made.items()}


def trained_tokens(config: RunConfig) -> dict[str, int]:
    """Return the tokens that each stage is trained on, repeated ones counted again."""
    length = config.data.sequence_length
    counts = {
        stage: train.steps * train.global_batch * length for stage, train in config.stages().items()
    }
    short = lengths(config.data, config.teacher.curriculum)
    return counts | {"teacher": round(counts["teacher"] * fmean(short) / length)}


def _model_figures(scores: dict[str, Any]) -> dict[str, float]:
    """Return the scores under their keys: bits always, accuracy where it is the unit."""
    main = "accuracy" if scores["unit"] == "accuracy" else "bits"
    groups = {"bits": "bits", main: "scores", f"long_{main}": "long_scores"}
    return {
        key_of(name, measure): value
        for measure, group in groups.items()
        for name, value in scores[group].items()
    }


def environment(config: RunConfig) -> dict[str, Any]:
    """Return versions, and the devices and processes that a run takes here, by name."""
    runtime = (config if config.runtime.resolved else resolved(config, here())).runtime
    device = f"CPU, {runtime.threads} thread(s) a worker"
    if runtime.gpu:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "deepspeed": version("deepspeed"),
        "device": device,
        "workers": runtime.workers,
        "zero_stage": runtime.zero_stage,
        "encoder gangs": f"{runtime.gangs} of {runtime.gang_ranks} ranks",
    }
