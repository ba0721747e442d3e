"""What the training loop runs: which objective, from which weights, on which stream."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch

from smt_ray.config import RunConfig, TrainConfig
from smt_ray.data.curriculum import growing
from smt_ray.data.reader import Reader, Stream
from smt_ray.data.shards import open_shards
from smt_ray.data.storage import Location
from smt_ray.data.weights import load_weights
from smt_ray.data.windows import Windows, dealt
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import Objective
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.train.checkpoint import State

IN_FLIGHT = 8
"""Windows in flight for each sequence of a batch (P / B)."""


class _Program(ABC):
    """What all stages share: they read training and validation shards in the same way."""

    config: RunConfig
    stage: str

    @property
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""
        return self.config.stages()[self.stage]

    @abstractmethod
    def reader(self, split: str, rank: int, world: int) -> Reader:
        """Read a split's shards."""

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Read the training shards."""
        return self.reader("train", rank, world)

    def validation(self, rank: int, world: int) -> Stream:
        """Read the validation shards."""
        return self.reader("validation", rank, world)


@dataclass(frozen=True)
class _OnTokens(_Program):
    config: RunConfig
    tokens: Location
    vocabulary: int

    def reader(self, split: str, rank: int, world: int) -> Reader:
        """Read a split's tokens."""
        expected = {"sequence_length": self.config.data.sequence_length}
        return _reader(self.tokens / split, "tokens", expected, self.train, rank, world)


@dataclass(frozen=True)
class _OnLabels(_Program):
    config: RunConfig
    labels: Location
    label_fields: dict[str, Any]

    def reader(self, split: str, rank: int, world: int) -> Reader:
        """Read a split's labels."""
        return _reader(self.labels / split, "labels", self.label_fields, self.train, rank, world)


@dataclass(frozen=True)
class TeacherProgram(_OnTokens):
    """Encoder, decoder and cell on token shards (Eq. 5)."""

    stage: str = "teacher"

    def objective(self) -> Objective:
        """Build a fresh teacher."""
        torch.manual_seed(self.train.seed)
        config = self.config
        return Teacher(config.model, config.loss, self.vocabulary, config.seed, dense=config.dense)

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Read the training tokens, short sequences first where a curriculum is asked for."""
        config, train = self.config, self.train
        return growing(
            self.reader("train", rank, world),
            config.data,
            config.teacher.curriculum,
            lambda step: step / train.steps,
            rows=train.global_batch,
            seed=train.seed,
            rank=rank,
            world=world,
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

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Read the training tokens; in mode `parallel`, keep windows of them in flight."""
        unroll, model = self.config.unroll, self.config.rnn_model
        fresh = self.reader("train", rank, world)
        if unroll.mode != "parallel":
            return fresh
        shape = model.memory_tokens, model.width
        return Windows(
            fresh,
            factor=IN_FLIGHT,
            visits=unroll.visits,
            depth=unroll.span,
            seed=self.train.seed,
            shape=shape,
            saved=dealt(saved, rank, world, IN_FLIGHT),
        )


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

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Read the training labels; in mode `parallel`, keep windows of them in flight."""
        dmt, fresh = self.config.dmt, self.reader("train", rank, world)
        if dmt.mode != "parallel":
            return fresh
        return Windows(
            fresh,
            factor=IN_FLIGHT,
            visits=dmt.visits,
            depth=dmt.depth,
            seed=self.train.seed,
            saved=dealt(saved, rank, world, IN_FLIGHT),
        )


def _reader(
    directory: Location,
    kind: Any,
    expected: dict[str, Any],
    train: TrainConfig,
    rank: int,
    world: int,
) -> Reader:
    return Reader(
        directory,
        open_shards(directory, kind, **expected),
        global_batch=train.global_batch,
        seed=train.seed,
        rank=rank,
        world=world,
    )
