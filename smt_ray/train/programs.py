"""What the training loop runs: which objective, from which weights, on which stream."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

from smt_ray.config import RunConfig, TrainConfig
from smt_ray.data.curriculum import growing
from smt_ray.data.reader import SPREAD, Rows, Stream, open_reader
from smt_ray.data.storage import Location
from smt_ray.data.weights import load_weights
from smt_ray.data.windows import Windows
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import Objective
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.train.checkpoint import State

IN_FLIGHT = 8
"""Windows in flight for each sequence of a batch (P / B)."""


class _Program(ABC):
    """What all stages share: they read training and validation rows in the same way."""

    config: RunConfig
    stage: str

    @property
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""
        return self.config.stages()[self.stage]

    @property
    def group(self) -> int:
        """Consecutive sequences of a batch that stay together."""
        return 1

    @abstractmethod
    def rows(self, split: str, rank: int, world: int) -> Rows:
        """Return a rank's columns of a split's batches."""

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Return the training rows as they come."""
        return self.rows("train", rank, world)

    def validation(self, rank: int, world: int) -> Stream:
        """Return the validation rows."""
        return self.rows("validation", rank, world)

    def windows(self, rows: Rows, saved: State | None, step: int, **settings: Any) -> Windows:
        """Keep windows of `rows` in flight."""
        train, length = self.train, self.config.data.sequence_length
        own = {"factor": IN_FLIGHT, "seed": train.seed, "length": length, **settings}
        return Windows(rows, **own, saved=saved, step=step)


@dataclass(frozen=True)
class _OnTokens(_Program):
    config: RunConfig
    tokens: Location
    vocabulary: int

    def rows(self, split: str, rank: int, world: int) -> Rows:
        """Read a split's tokens."""
        train = self.train
        return open_reader(
            self.tokens / split,
            "tokens",
            {"sequence_length": self.config.data.sequence_length},
            global_batch=train.global_batch,
            seed=train.seed,
            rank=rank,
            world=world,
            group=self.group,
            chunk=SPREAD if split == "validation" else 0,
        )


class Labels(Protocol):
    """Where labels come from: a store, or encoder gangs while they are needed."""

    def rows(self, split: str, train: TrainConfig, rank: int, world: int) -> Rows:
        """Return a rank's columns of a split's batches."""


@dataclass(frozen=True)
class StoredLabels(Labels):
    """Label shards."""

    location: Location
    fields: dict[str, Any]
    """What their manifests must say."""

    def rows(self, split: str, train: TrainConfig, rank: int, world: int) -> Rows:
        """Read a split's labels."""
        return open_reader(
            self.location / split,
            "labels",
            self.fields,
            global_batch=train.global_batch,
            seed=train.seed,
            rank=rank,
            world=world,
            chunk=SPREAD if split == "validation" else 0,
        )


@dataclass(frozen=True)
class _OnLabels(_Program):
    config: RunConfig
    labels: Labels

    def rows(self, split: str, rank: int, world: int) -> Rows:
        """Take a split's labels."""
        return self.labels.rows(split, self.train, rank, world)


@dataclass(frozen=True)
class TeacherProgram(_OnTokens):
    """Encoder, decoder and cell on token shards (Eq. 5)."""

    stage: str = "teacher"

    @property
    def group(self) -> int:
        """Sequences that the loss compares."""
        return self.config.group

    def objective(self) -> Objective:
        """Build a fresh teacher."""
        torch.manual_seed(self.train.seed)
        config = self.config
        loss = replace(config.loss, group=self.group)
        return Teacher(config.model, loss, self.vocabulary, config.seed, dense=config.dense)

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Read the training tokens, short sequences first where a curriculum is asked for."""
        config, train = self.config, self.train
        return growing(
            self.rows("train", rank, world),
            config.data,
            config.teacher.curriculum,
            lambda step: step / train.steps,
            rows=train.global_batch,
            seed=train.seed,
            rank=rank,
            world=world,
            group=self.group,
        )


@dataclass(frozen=True)
class BpttProgram(_OnTokens):
    """The unrolled RNN on token shards: `bptt` from fresh weights, `finetune` from DMT's."""

    stage: Literal["bptt", "finetune"] = "bptt"
    start: Location | None = None

    def objective(self) -> Objective:
        """Build the RNN: that of the artifact `start`, or a fresh one."""
        torch.manual_seed(self.train.seed)
        objective = Bptt(self.config.rnn_model, self.config.unroll, self.vocabulary)
        if self.start:
            objective.rnn.load_state_dict(load_weights(self.start, "rnn."))
        return objective

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Read the training tokens; in mode `parallel`, keep windows of them in flight."""
        unroll, model = self.config.unroll, self.config.rnn_model
        fresh = self.rows("train", rank, world)
        if unroll.mode != "parallel":
            return fresh
        shape = model.memory_tokens, model.width
        own = {"visits": unroll.visits, "depth": unroll.span, "shape": shape}
        return self.windows(fresh, saved, step, **own)


@dataclass(frozen=True)
class TransitionProgram(_OnLabels):
    """The cell on label shards (Eq. 3)."""

    teacher: Location
    vocabulary: int
    stage: str = "transition"

    def objective(self) -> Objective:
        """Build the cell: the teacher's, or a fresh one."""
        torch.manual_seed(self.train.seed)
        objective = Transition(self.config.rnn_model, self.vocabulary)
        if self.config.warm_start:
            objective.cell.load_state_dict(load_weights(self.teacher, "cell."))
        return objective


@dataclass(frozen=True)
class DmtProgram(_OnLabels):
    """The RNN on its own memories against label shards (Eq. 6)."""

    teacher: Location
    transition: Location
    vocabulary: int
    stage: str = "dmt"

    def objective(self) -> Objective:
        """Build the RNN from the fitted cell and the teacher's decoder."""
        config, readout = self.config, self.config.experimental.readout
        objective = Dmt(config.rnn_model, config.dmt, self.vocabulary, readout)
        objective.rnn.cell.load_state_dict(load_weights(self.transition, "cell."))
        decoder = load_weights(self.teacher, "decoder.")
        objective.rnn.readout.load_state_dict(decoder)
        objective.teacher_readout.load_state_dict(decoder)
        return objective

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Read the training labels; in mode `parallel`, keep windows of them in flight."""
        dmt, fresh = self.config.dmt, self.rows("train", rank, world)
        if dmt.mode != "parallel":
            return fresh
        return self.windows(fresh, saved, step, visits=dmt.visits, depth=dmt.depth)
