"""The stages in order: what is done, what must be made, and the run directory at the end."""

import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
import yaml

from smt_ray.config import RunConfig, leaves
from smt_ray.data import sources
from smt_ray.data.artifacts import MANIFEST, Artifact, fingerprint, make
from smt_ray.data.export import save_rnn
from smt_ray.data.shards import DTYPES, open_shards
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.distributed.evaluate import evaluate
from smt_ray.distributed.labels import write_labels
from smt_ray.distributed.loop import Program
from smt_ray.distributed.metrics import read_metrics
from smt_ray.distributed.programs import (
    DmtProgram,
    TeacherProgram,
    TransitionProgram,
    load_weights,
)
from smt_ray.distributed.session import (
    check_storage,
    connect,
    cpus_needed,
    gpus_needed,
    preflight,
)
from smt_ray.distributed.tokens import write_tokens
from smt_ray.distributed.trainer import fit
from smt_ray.evaluation.plots import SERIES
from smt_ray.evaluation.report import Report, write_report
from smt_ray.evaluation.table import duration
from smt_ray.model.rnn import RNN
from smt_ray.objectives.teacher import Teacher

logger = logging.getLogger(__name__)
RUNTIME = ("runtime.", "name", "storage", "preset")
TRAINED = ("teacher", "transition", "dmt")
UPSTREAM: dict[str, tuple[str, ...]] = {
    "tokens": (),
    "teacher": ("tokens",),
    "labels": ("tokens", "teacher"),
    "transition": ("labels", "teacher"),
    "dmt": ("labels", "teacher", "transition"),
    "export": ("dmt", "tokens"),
    "evaluate": ("export", "dmt"),
}
"""The stages in order, and what each is made from."""


def run(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages and write the run directory; what is finished already is used as it is.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for what the user can mend, in one line.
    """
    start = time.monotonic()
    storage = Location.of(config.storage)
    directory = storage / config.name
    check_same_run(config, directory, overwrite)
    sources.check(config.data)
    stages = Stages(config, storage)
    missing = stages.unfinished()
    check_storage(storage, label_bytes_to_write(config, missing.get("labels")))
    if missing:
        connect(config.runtime)
        preflight(config)
    directory.make_dir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    artifacts = stages.all()
    return _finish(config, directory, artifacts, time.monotonic() - start)


def check_same_run(config: RunConfig, directory: Location, overwrite: bool) -> None:
    """Refuse to continue a run under other scientific settings.

    Raises:
        ValueError: naming the first field that differs, unless `overwrite`.
    """
    saved = directory / "config.yaml"
    if overwrite or not saved.exists():
        return
    before = leaves(RunConfig.from_dict(yaml.safe_load(saved.read_text())))
    for name, value in leaves(config).items():
        if not name.startswith(RUNTIME) and before[name] != value:
            raise ValueError(
                f"{name}={value}: run {config.name!r} has {name}={before[name]}; "
                "choose another --name, or give --overwrite to point this name at a new run"
            )


def parameters(config: RunConfig, vocabulary: int) -> dict[str, int]:
    """Return the numbers of weights of the teacher, its encoder, and the RNN."""
    with torch.device("meta"):
        teacher = Teacher(config.model, config.loss, vocabulary, 0)
        rnn = RNN(config.model, vocabulary)
    modules = {"teacher": teacher, "encoder": teacher.encoder, "rnn": rnn}
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def label_bytes(config: RunConfig, tokens: int) -> int:
    """Return the bytes of the labels of `tokens` tokens: K * D numbers for each."""
    model, dtype = config.model, DTYPES[config.labels.dtype]
    each = model.memory_tokens * model.width * dtype.itemsize
    return int(tokens * config.labels.fraction * each)


def label_bytes_to_write(config: RunConfig, place: Location | None) -> int:
    """Return the bytes of labels that `place` lacks; 0 without one, or for a source of no size."""
    if place is None:
        return 0
    written = sum(file.size() for file in place.files(".parquet", recursive=True))
    return max(0, label_bytes(config, sources.size(config.data)) - written)


def plan(config: RunConfig) -> str:
    """Describe what a run takes: parameters, label bytes, memory of a worker, CPUs, GPUs."""
    vocabulary = load_tokenizer(config.data.tokenizer).vocabulary
    counts, tokens = parameters(config, vocabulary), sources.size(config.data)
    runtime, gib = config.runtime, 2**30
    shared = runtime.workers if runtime.zero_stage == 3 else 1
    training = counts["teacher"] * 16 / shared
    held = counts["encoder"] * 4 / runtime.gang_ranks
    lines = {
        "preset": config.preset,
        "source": f"{config.data.source} ({tokens:,} bytes)" if tokens else config.data.source,
        "parameters": ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        "state of the RNN": f"{config.model.memory_tokens * config.model.width:,} numbers",
        "labels": f"{label_bytes(config, tokens) / gib:.2f} GiB" if tokens else "unknown size",
        "weights, gradients and moments": f"{training / gib:.2f} GiB a training worker",
        "encoder weights": f"{held / gib:.2f} GiB a gang rank",
        "CPUs": f"{cpus_needed(runtime)} logical ones",
        "GPUs": str(gpus_needed(runtime)),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def stage_settings(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the scientific settings that each stage adds to those of what it is made from."""
    return {
        "tokens": asdict(config.data) | {"content": sources.identity(config.data)},
        "teacher": {name: asdict(getattr(config, name)) for name in ("model", "loss", "teacher")},
        "labels": asdict(config.labels),
        "transition": asdict(config.transition),
        "dmt": asdict(config.dmt),
        "export": {},
        "evaluate": asdict(config.evaluation),
    }


class Stages:
    """Builds each stage's artifact from its upstream ones."""

    def __init__(self, config: RunConfig, storage: Location) -> None:
        """Prepare to make the artifacts of `config` in `storage`."""
        self.config, self.storage = config, storage
        self.settings = stage_settings(config)
        self.made: dict[str, Artifact] = {}

    def all(self) -> dict[str, Artifact]:
        """Make every stage in order."""
        for stage in UPSTREAM:
            getattr(self, stage)()
        return self.made

    def unfinished(self) -> dict[str, Location]:
        """Return the stages that are still to be made, and their places."""
        planned: dict[str, Artifact] = {}
        for stage, names in UPSTREAM.items():
            mark = fingerprint(stage, self.settings[stage], [planned[name] for name in names])
            place = self.storage / "artifacts" / f"{stage}-{mark}"
            planned[stage] = Artifact(stage, mark, place, {}, reused=False, resumed=False)
        places = {stage: artifact.location for stage, artifact in planned.items()}
        return {stage: p for stage, p in places.items() if not (p / MANIFEST).exists()}

    def _make(self, stage: str, build: Callable[[Location, str], dict[str, Any]]) -> Artifact:
        upstream = [self.made[name] for name in UPSTREAM[stage]]
        artifact = make(self.storage, stage, self.settings[stage], upstream, build)
        took = duration(artifact.manifest["seconds"])
        state = "finished" if artifact.resumed else "made"
        state = "found" if artifact.reused else f"{state} in {took}"
        logger.info("%-10s %s: %s", stage, state, artifact.location.name)
        self.made[stage] = artifact
        return artifact

    def _train(self, program: Program, check: Callable[[], None]) -> None:
        """Train unless it is done; check its shards here, since a worker's error is tried again."""

        def build(place: Location, mark: str) -> dict[str, Any]:
            check()
            return fit(program, self.config.runtime, place)

        self._make(program.stage, build)

    def tokens(self) -> None:
        """Token shards from the source."""
        config = self.config

        def build(place: Location, mark: str) -> dict[str, Any]:
            write_tokens(config, place)
            split = {name: open_shards(place / name, "tokens") for name in sources.SPLITS}
            counts = {name: manifest["sequences"] for name, manifest in split.items()}
            return {"sequences": counts, "vocabulary": split["train"]["vocabulary"]}

        self._make("tokens", build)

    @property
    def vocabulary(self) -> int:
        """V of the token shards."""
        return self.made["tokens"].figures["vocabulary"]

    def teacher(self) -> None:
        """Encoder, decoder and cell."""
        program = TeacherProgram(self.config, self.made["tokens"].location, self.vocabulary)
        self._train(program, self._check_tokens)

    def _check_tokens(self) -> None:
        """Check the token shards before they are trained on, and that they fill a batch."""
        config, tokens = self.config, self.made["tokens"].location
        fields = {"sequence_length": config.data.sequence_length, "vocabulary": self.vocabulary}
        for split in sources.SPLITS:
            found = open_shards(tokens / split, "tokens", **fields)["sequences"]
            if found < config.teacher.global_batch:
                raise ValueError(
                    f"teacher.global-batch={config.teacher.global_batch}: the {split} split has "
                    f"only {found} sequences; lower it, or give a longer data.source"
                )

    def labels(self) -> None:
        """Memory labels from the encoder gang."""
        config, teacher = self.config, self.made["teacher"]
        tokens = self.made["tokens"].location
        self._make(
            "labels",
            lambda place, _: write_labels(
                config, tokens, teacher.location, teacher.fingerprint, self.vocabulary, place
            ),
        )

    def _check_labels(self) -> None:
        """Check the label shards before they are trained on."""
        for split in sources.SPLITS:
            open_shards(self.made["labels"].location / split, "labels", **self._label_fields())

    def _label_fields(self) -> dict[str, Any]:
        """What label shards must say of themselves to be this run's."""
        config = self.config
        return {
            "encoder": self.made["teacher"].fingerprint,
            "sequence_length": config.data.sequence_length,
            "memory_tokens": config.model.memory_tokens,
            "width": config.model.width,
        }

    def transition(self) -> None:
        """The cell on the labels."""
        config, made = self.config, self.made
        program = TransitionProgram(
            config,
            made["labels"].location,
            self._label_fields(),
            made["teacher"].location,
            self.vocabulary,
        )
        self._train(program, self._check_labels)

    def dmt(self) -> None:
        """The RNN on its own memories."""
        config, made = self.config, self.made
        program = DmtProgram(
            config,
            made["labels"].location,
            self._label_fields(),
            made["teacher"].location,
            made["transition"].location,
            self.vocabulary,
        )
        self._train(program, self._check_labels)

    def export(self) -> None:
        """The standalone RNN."""

        def build(place: Location, mark: str) -> dict[str, Any]:
            rnn = RNN(self.config.model, self.vocabulary)
            rnn.load_state_dict(load_weights(self.made["dmt"].location, "rnn."))
            save_rnn(rnn, place, load_tokenizer(self.made["tokens"].location))
            return {}

        self._make("export", build)

    def evaluate(self) -> None:
        """Scores, curves and a sample."""
        places = {stage: artifact.location for stage, artifact in self.made.items()}

        def build(place: Location, mark: str) -> dict[str, Any]:
            self._check_tokens()
            result = evaluate(self.config, places)
            (place / "scores.json").write_json(result)
            return {"bits": result["bits"], "drift": result["drift"]}

        self._make("evaluate", build)


def _finish(
    config: RunConfig, directory: Location, made: dict[str, Artifact], seconds: float
) -> dict[str, Any]:
    """Write everything into the run directory; return the summary."""
    scores = (made["evaluate"].location / "scores.json").read_json()
    metrics = {stage: read_metrics(made[stage].location) for stage in TRAINED}
    summary = _summary(config, made, scores, seconds)
    (directory / "artifacts.json").write_json(
        {stage: f"{a.stage}-{a.fingerprint}" for stage, a in made.items()}
    )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (made["export"].location / name).copy_to((directory / "rnn").make_dir() / name)
    rows = [json.dumps(row) + "\n" for stage in TRAINED for row in metrics[stage]]
    (directory / "metrics.jsonl").write_text("".join(rows))
    (directory / "summary.json").write_json(summary)
    curves = {name: curve for name, curve in scores["curves"].items() if name in SERIES}
    stages = [
        {
            "stage": stage,
            "artifact": artifact.location.name,
            "reused": artifact.reused,
            "seconds": artifact.manifest["seconds"],
        }
        | ({"steps": artifact.figures["steps"]} if stage in TRAINED else {})
        for stage, artifact in made.items()
    ]
    write_report(
        directory,
        Report(
            summary=summary,
            stages=stages,
            curves=curves,
            drift=scores["drift_curves"],
            metrics=metrics,
            sample=scores["sample"],
            config=config.to_dict(),
            environment=_environment(config),
        ),
    )
    return summary


def _summary(
    config: RunConfig, made: dict[str, Artifact], scores: dict[str, Any], seconds: float
) -> dict[str, Any]:
    bits, drift, labels = scores["bits"], scores["drift"], made["labels"].figures
    figures = {stage: made[stage].figures for stage in TRAINED}
    return {
        "name": config.name,
        "preset": config.preset,
        "source": config.data.source,
        "tokens_train": made["tokens"].figures["sequences"]["train"] * config.data.sequence_length,
        "parameters_rnn": scores["parameters_rnn"],
        "parameters_teacher": parameters(config, made["tokens"].figures["vocabulary"])["teacher"],
        "teacher_bits": bits["teacher"],
        "teacher_bits_before_dmt": bits["teacher_before_dmt"],
        "rnn_bits": bits["rnn"],
        "rnn_bits_before_dmt": bits["rnn_before_dmt"],
        "bptt_bits": None,
        "order0_bits": bits["order0"],
        "order1_bits": bits["order1"],
        "order2_bits": bits["order2"],
        "drift": drift["rnn"],
        "drift_before_dmt": drift["rnn_before_dmt"],
        "labels": labels["labels"],
        "labels_per_s": labels["labels_per_s"],
        "transitions_per_s": figures["transition"]["tokens_per_s"],
        "tokens_per_s": figures["teacher"]["tokens_per_s"],
        "wall_seconds": seconds,
        "resumed": any(artifact.reused or artifact.resumed for artifact in made.values()),
    } | {f"seconds_{stage}": artifact.manifest["seconds"] for stage, artifact in made.items()}


def _environment(config: RunConfig) -> dict[str, Any]:
    device = (
        torch.cuda.get_device_name()
        if config.runtime.gpu and torch.cuda.is_available()
        else (f"CPU, {config.runtime.threads} thread(s) a worker")
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "deepspeed": version("deepspeed"),
        "device": device,
        "workers": config.runtime.workers,
        "zero_stage": config.runtime.zero_stage,
        "encoder gangs": f"{config.runtime.gangs} of {config.runtime.gang_ranks} ranks",
    }
