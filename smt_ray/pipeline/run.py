"""Runs the stages in order: what is done is used, what is not is made."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import yaml
from ray.exceptions import RayError

from smt_ray.cluster.refusals import explained
from smt_ray.cluster.session import (
    check_storage,
    connect,
    preflight,
)
from smt_ray.config import RunConfig
from smt_ray.data import sources
from smt_ray.data.export import save_rnn
from smt_ray.data.shards import is_damage, open_shards, verify_shards
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.data.tokens import write_tokens
from smt_ray.data.weights import load_weights
from smt_ray.evaluation.evaluator import evaluate
from smt_ray.labels.factory import write_labels
from smt_ray.model.cells import cell_class
from smt_ray.model.rnn import RNN
from smt_ray.pipeline.artifacts import MANIFEST, Artifact, make, place_of
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.planning import label_bytes_to_write
from smt_ray.pipeline.run_directory import check_same_run, write_run
from smt_ray.pipeline.stages import fingerprints, settings, upstream
from smt_ray.terminal import duration
from smt_ray.train.loop import Program
from smt_ray.train.programs import (
    BpttProgram,
    DmtProgram,
    TeacherProgram,
    TransitionProgram,
)
from smt_ray.train.trainer import fit

logger = logging.getLogger(__name__)


def run(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages and write the run directory; what is finished already is used as it is.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for what the user can mend, in one line.
    """
    start = time.monotonic()
    storage = Location.of(config.storage, "storage")
    directory = storage / config.name
    check_same_run(config, directory, overwrite)
    sources.check(config.data)
    for model in (config.model, config.rnn_model):
        cell_class(model.cell)  # a user's class that is not there is refused now
    stages = Stages(config, storage)
    check_storage(storage, label_bytes_to_write(config, stages.unfinished().get("labels")))
    with explained(storage), locked(directory, config.name):
        check_same_run(config, directory, overwrite)  # again: it may be new since the wait
        if stages.unfinished():
            connect(config.runtime)
            preflight(config)
        directory.make_dir()
        (directory / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        artifacts = stages.all()
        return write_run(config, directory, artifacts, time.monotonic() - start)


class Stages:
    """Builds each stage's artifact from its upstream ones."""

    def __init__(self, config: RunConfig, storage: Location) -> None:
        """Prepare to make the artifacts of `config` in `storage`."""
        self.config, self.storage = config, storage
        self.upstream, self.settings = upstream(config), settings(config)
        self.made: dict[str, Artifact] = {}

    def all(self) -> dict[str, Artifact]:
        """Make every stage in order."""
        for stage in self.upstream:
            getattr(self, stage)()
        return self.made

    def unfinished(self) -> dict[str, Location]:
        """Return the stages that are still to be made, and their places."""
        content = self.settings["tokens"]["content"]  # as it was when the run began
        marks = fingerprints(self.config, lambda _: content)
        places = {stage: place_of(self.storage, stage, mark) for stage, mark in marks.items()}
        return {stage: p for stage, p in places.items() if not (p / MANIFEST).exists()}

    def _make(self, stage: str, build: Callable[[Location, str], dict[str, Any]]) -> Artifact:
        inputs = [self.made[name] for name in self.upstream[stage]]
        lock = partial(locked, run=self.config.name)
        artifact = make(self.storage, stage, self.settings[stage], inputs, build, lock)
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

    def _check_tokens(self, trained: str = "teacher") -> None:
        """Check the token shards before they are trained on, and that they fill a batch."""
        config, tokens = self.config, self.made["tokens"].location
        batch = config.stages()[trained].global_batch
        fields = {"sequence_length": config.data.sequence_length, "vocabulary": self.vocabulary}
        for split in sources.SPLITS:
            found = open_shards(tokens / split, "tokens", **fields)["sequences"]
            if found < batch:
                raise ValueError(
                    f"{trained}.global-batch={batch}: the {split} split has only {found} "
                    "sequences; lower it, or give a longer data.source"
                )

    def labels(self) -> None:
        """Memory labels from the encoder gang."""
        config, teacher = self.config, self.made["teacher"]
        tokens = self.made["tokens"].location

        def build(place: Location, mark: str) -> dict[str, Any]:
            encoder = teacher.location, teacher.fingerprint
            try:
                return write_labels(config, tokens, *encoder, self.vocabulary, place)
            except RayError as error:
                if is_damage(error):
                    for split in sources.SPLITS:
                        verify_shards(tokens / split)
                raise

        self._make("labels", build)

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

    def finetune(self) -> None:
        """The RNN of DMT, unrolled."""
        self._unroll("finetune", self.made["dmt"].location)

    def bptt(self) -> None:
        """The baseline: a fresh RNN, unrolled."""
        self._unroll("bptt")

    def _unroll(self, stage: Literal["finetune", "bptt"], start: Location | None = None) -> None:
        tokens = self.made["tokens"].location
        program = BpttProgram(self.config, tokens, self.vocabulary, stage, start)
        self._train(program, lambda: self._check_tokens(f"{stage}.train"))

    def export(self) -> None:
        """The standalone RNN."""
        trained = self.made[self.upstream["export"][0]].location

        def build(place: Location, mark: str) -> dict[str, Any]:
            rnn = RNN(self.config.rnn_model, self.vocabulary)
            rnn.load_state_dict(load_weights(trained, "rnn."))
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
            return {name: result[name] for name in ("unit", "scores", "drift")}

        self._make("evaluate", build)
