"""Runs the stages in order: what is done is used, what is not is made."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import yaml
from ray.exceptions import RayError

from smt_ray.cluster.refusals import explained
from smt_ray.cluster.session import check_storage, connect, preflight
from smt_ray.config import RunConfig
from smt_ray.data import sources
from smt_ray.data.export import save_rnn
from smt_ray.data.shards import is_damage, open_shards, verify_shards
from smt_ray.data.source_plan import SourcePlan, plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.data.tokens import write_tokens
from smt_ray.data.weights import load_weights
from smt_ray.evaluation.evaluator import evaluate
from smt_ray.labels.factory import write_labels
from smt_ray.model.cells import cell_class
from smt_ray.model.rnn import RNN
from smt_ray.pipeline.artifacts import MANIFEST, Artifact, fingerprint, location_of, make
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.planning import label_bytes_to_write
from smt_ray.pipeline.run_directory import check_same_run, write_run
from smt_ray.pipeline.stages import VERSIONS, locations, settings, upstream
from smt_ray.terminal import duration
from smt_ray.train.loop import Program
from smt_ray.train.programs import BpttProgram, DmtProgram, TeacherProgram, TransitionProgram
from smt_ray.train.trainer import fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run, resolved: its settings, its source, and where its results lie."""

    config: RunConfig
    source: SourcePlan
    storage: Location

    @classmethod
    def of(cls, config: RunConfig) -> "Run":
        """Look at the source, and check all that is known before any work.

        Raises:
            ValueError: for what the user can mend, in one line.
        """
        for model in (config.model, config.rnn_model):
            cell_class(model.cell)  # a user's class that is not there is refused now
        storage = Location.of(config.storage, "storage")
        return cls(config, plan_source(config.data), storage)

    @property
    def directory(self) -> Location:
        """The run directory."""
        return self.storage / self.config.name

    def locations(self) -> dict[str, Location]:
        """Return where the artifacts lie, those of stages after `tokens` once that is made."""
        return locations(self.config, self.source.fingerprint, self.storage)

    def is_finished(self) -> bool:
        """Return whether all artifacts are made."""
        known = self.locations()
        made = [stage for stage, location in known.items() if (location / MANIFEST).exists()]
        return len(made) == len(upstream(self.config))


def run(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages and write the run directory; what is finished already is used as it is.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for what the user can mend, in one line.
    """
    start = time.monotonic()
    storage = Location.of(config.storage, "storage")
    check_same_run(config, storage / config.name, overwrite)
    this = Run.of(config)
    check_storage(storage, label_bytes_to_write(config, this.source, this.locations()))
    with explained(storage), locked(this.directory, config.name):
        check_same_run(config, this.directory, overwrite)  # again: it may be new since the wait
        if not this.is_finished():
            this = replace(this, config=connect(config))
            preflight(this.config)
        this.directory.make_dir()
        settings = yaml.safe_dump(config.to_dict(), sort_keys=False)
        (this.directory / "config.yaml").write_text(settings)
        artifacts = Stages(this).all()
        return write_run(this.config, this.directory, artifacts, time.monotonic() - start)


class Stages:
    """Builds each stage's artifact from its upstream ones."""

    def __init__(self, this: Run) -> None:
        """Prepare to make the artifacts of a run."""
        self.this, self.config, self.storage = this, this.config, this.storage
        self.upstream = upstream(this.config)
        self.settings = settings(this.config, this.source.fingerprint)
        self.made: dict[str, Artifact] = {}

    def all(self) -> dict[str, Artifact]:
        """Make every stage in order."""
        for stage in self.upstream:
            getattr(self, stage)()
        return self.made

    def _make(self, stage: str, build: Callable[[Location], dict[str, Any]]) -> Artifact:
        inputs, own = [self.made[name] for name in self.upstream[stage]], self.settings[stage]
        identities = [artifact.identity for artifact in inputs]
        mark = fingerprint(stage, VERSIONS[stage], own, identities)
        lock = partial(locked, run=self.config.name)
        location = location_of(self.storage, stage, mark)
        artifact = make(location, own, inputs, build, lock)
        took = duration(artifact.manifest["seconds"])
        state = "finished" if artifact.resumed else "made"
        state = "found" if artifact.reused else f"{state} in {took}"
        logger.info("%-10s %s: %s", stage, state, location.name)
        self.made[stage] = artifact
        return artifact

    def _train(self, program: Program, check: Callable[[], None]) -> None:
        """Train unless it is done; check its shards here, since a worker's error is tried again."""

        def build(location: Location) -> dict[str, Any]:
            check()
            return fit(program, self.config.runtime, location)

        self._make(program.stage, build)

    def tokens(self) -> None:
        """Token shards from the source."""
        self._make("tokens", partial(write_tokens, self.this.source))

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

        def build(location: Location) -> dict[str, Any]:
            encoder = teacher.location, teacher.fingerprint
            try:
                return write_labels(config, tokens, *encoder, self.vocabulary, location)
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
