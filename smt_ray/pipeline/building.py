"""The stages of a run, each made from those before it, unless it is there already."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import ray

from smt_ray.config import RunConfig
from smt_ray.data import sources
from smt_ray.data.export import save_rnn
from smt_ray.data.manifest import check_shards, open_manifest
from smt_ray.data.source_plan import SourcePlan
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.data.tokens import write_tokens
from smt_ray.data.weights import load_weights
from smt_ray.evaluation.evaluator import evaluate
from smt_ray.labels.factory import encoder_spec, write_labels
from smt_ray.labels.labeller import started
from smt_ray.labels.stream import StreamedLabels
from smt_ray.model.rnn import RNN
from smt_ray.pipeline.artifacts import MANIFEST, Artifact, fingerprint, location_of, make
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.stages import VERSIONS, settings, upstream
from smt_ray.terminal import duration
from smt_ray.train.loop import Program
from smt_ray.train.programs import (
    BpttProgram,
    DmtProgram,
    Labels,
    StoredLabels,
    TeacherProgram,
    TransitionProgram,
)
from smt_ray.train.trainer import fit

logger = logging.getLogger(__name__)


class Stages:
    """Builds each stage's artifact from its upstream ones."""

    def __init__(self, config: RunConfig, source: SourcePlan, storage: Location) -> None:
        """Prepare to make the artifacts of a run in `storage`."""
        self.config, self.source, self.storage = config, source, storage
        self.upstream = upstream(config)
        self.settings = settings(config, source.fingerprint)
        self.made: dict[str, Artifact] = {}

    def all(self) -> dict[str, Artifact]:
        """Make every stage in order."""
        for stage in self.upstream:
            getattr(self, stage)()
        return self.made

    def _make(self, stage: str, build: Callable[[Location], dict[str, Any]]) -> Artifact:
        inputs, own = [self.made[name] for name in self.upstream[stage]], self.settings[stage]
        lock = partial(locked, run=self.config.name)
        location = location_of(self.storage, stage, self._fingerprint(stage))
        artifact = make(location, own, inputs, build, lock)
        took = duration(artifact.manifest["seconds"])
        state = "finished" if artifact.resumed else "made"
        state = "found" if artifact.reused else f"{state} in {took}"
        logger.info("%-10s %s: %s", stage, state, location.name)
        self.made[stage] = artifact
        return artifact

    def _fingerprint(self, stage: str) -> str:
        identities = [self.made[name].identity for name in self.upstream[stage]]
        return fingerprint(stage, VERSIONS[stage], self.settings[stage], identities)

    def _train(self, program: Program, check: Callable[[], None]) -> None:
        """Train unless it is done; check its shards here, since a worker's error is tried again."""

        def build(location: Location) -> dict[str, Any]:
            check()
            return fit(program, self.config.runtime, location)

        self._make(program.stage, build)

    def tokens(self) -> None:
        """Token shards from the source."""
        self._make("tokens", partial(write_tokens, self.source))

    @property
    def vocabulary(self) -> int:
        """V of the token shards."""
        return self.made["tokens"].figures["vocabulary"]

    def teacher(self) -> None:
        """Encoder, decoder and cell."""
        program = TeacherProgram(self.config, self.made["tokens"].location, self.vocabulary)
        self._train(program, self._check_tokens)

    def _check_tokens(self, trained: str = "teacher") -> None:
        """Check the token shards before they are trained on, and that they fill a batch."""
        config, tokens = self.config, self.made["tokens"].location
        batch = config.stages()[trained].global_batch
        fields = {"sequence_length": config.data.sequence_length, "vocabulary": self.vocabulary}
        for split in sources.SPLITS:
            manifest = open_manifest(tokens / split, "tokens", **fields)
            check_shards(tokens / split, manifest)
            if (found := manifest["sequences"]) < batch:
                raise ValueError(
                    f"{trained}.global-batch={batch}: the {split} split has only {found} "
                    "sequences; lower it, or give a longer data.source"
                )

    def labels(self) -> None:
        """Memory labels from the encoder gang."""
        config, teacher = self.config, self.made["teacher"]
        tokens = self.made["tokens"].location

        def build(location: Location) -> dict[str, Any]:
            encoder = teacher.location, teacher.fingerprint
            return write_labels(config, tokens, *encoder, self.vocabulary, location)

        mark = self._fingerprint("labels")
        location = location_of(self.storage, "labels", mark)
        if config.labels.mode == "store" or (location / MANIFEST).exists():
            self._make("labels", build)
        else:  # later stages are of what it would be
            manifest = {"figures": {"labels": 0, "labels_per_s": 0.0}, "seconds": 0.0}
            self.made["labels"] = Artifact("labels", mark, location, manifest, False, False)

    def _on_labels(self, stage: str, program: Callable[[Labels], Program]) -> None:
        """Train on stored labels, or on those of gangs that run beside the trainer."""
        labels, config = self.made["labels"], self.config
        if config.labels.mode == "store" or (labels.location / MANIFEST).exists():
            stored = StoredLabels(labels.location, self._label_fields())
            self._train(program(stored), self._check_labels)
            return
        teacher, tokens = self.made["teacher"], self.made["tokens"].location

        def build(location: Location) -> dict[str, Any]:
            self._check_tokens(stage)
            spec = encoder_spec(config, teacher.location, self.vocabulary)
            with started(config.name, spec, config.runtime, 0) as gangs:
                streamed = StreamedLabels(config, tokens, teacher.fingerprint, gangs)
                figures = fit(program(streamed), config.runtime, location)
                made, rate = ray.get([gangs.meter.labels.remote(), gangs.meter.rate.remote()])
            labels.figures["labels"] += made
            labels.figures["labels_per_s"] = rate
            return figures

        self._make(stage, build)

    def _check_labels(self) -> None:
        """Check the label shards before they are trained on."""
        for split in sources.SPLITS:
            directory = self.made["labels"].location / split
            check_shards(directory, open_manifest(directory, "labels", **self._label_fields()))

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
        teacher = self.made["teacher"].location
        self._on_labels(
            "transition",
            lambda labels: TransitionProgram(self.config, labels, teacher, self.vocabulary),
        )

    def dmt(self) -> None:
        """The RNN on its own memories."""
        teacher, fitted = (self.made[name].location for name in ("teacher", "transition"))
        self._on_labels(
            "dmt", lambda labels: DmtProgram(self.config, labels, teacher, fitted, self.vocabulary)
        )

    def finetune(self) -> None:
        """The RNN of DMT, unrolled."""
        self._unroll("finetune", self.made["dmt"].location)

    def bptt(self) -> None:
        """The baseline: a fresh RNN, unrolled."""
        self._unroll("bptt")

    def _unroll(self, stage: Literal["finetune", "bptt"], start: Location | None = None) -> None:
        tokens = self.made["tokens"].location
        program = BpttProgram(self.config, tokens, self.vocabulary, stage, start)
        self._train(program, lambda: self._check_tokens(stage))

    def export(self) -> None:
        """The standalone RNN."""
        trained = self.made[self.upstream["export"][0]].location

        def build(location: Location) -> dict[str, Any]:
            rnn = RNN(self.config.rnn_model, self.vocabulary)
            rnn.load_state_dict(load_weights(trained, "rnn."))
            save_rnn(rnn, location, load_tokenizer(self.made["tokens"].location))
            return {}

        self._make("export", build)

    def evaluate(self) -> None:
        """Scores, curves and a sample."""
        made = {stage: artifact.location for stage, artifact in self.made.items()}

        def build(location: Location) -> dict[str, Any]:
            self._check_tokens()
            result = evaluate(self.config, made)
            (location / "scores.json").write_json(result)
            return {name: result[name] for name in ("unit", "scores", "drift")}

        self._make("evaluate", build)
