"""What the training loop runs: which objective, from which weights, on which stream."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch

from smt_ray.config import BpttConfig, DmtConfig, RunConfig, TrainConfig
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


class _Program(ABC):
    """What all stages share: they read training and validation shards in the same way."""

    @property
    @abstractmethod
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""

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

    @property
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""
        return self.config.teacher

    def objective(self) -> Objective:
        """Build a fresh teacher."""
        torch.manual_seed(self.train.seed)
        config = self.config
        return Teacher(config.model, config.loss, self.vocabulary, self.train.seed)


@dataclass(frozen=True)
class BpttProgram(_OnTokens):
    """The unrolled RNN on token shards: `bptt` from fresh weights, `finetune` from DMT's."""

    stage: Literal["bptt", "finetune"] = "bptt"
    start: Location | None = None

    @property
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""
        return self._settings.train

    @property
    def _settings(self) -> BpttConfig:
        return self.config.finetune if self.stage == "finetune" else self.config.bptt

    def objective(self) -> Objective:
        """Build the RNN: that of the artifact `start`, or a fresh one."""
        torch.manual_seed(self.train.seed)
        objective = Bptt(self.config.rnn_model, self._settings, self.vocabulary)
        if self.start:
            objective.rnn.load_state_dict(load_weights(self.start, "rnn."))
        return objective

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Read the training tokens; in mode `parallel`, keep windows of them in flight."""
        bptt, model = self._settings, self.config.rnn_model
        fresh = self.reader("train", rank, world)
        if bptt.mode != "parallel":
            return fresh
        shape = model.memory_tokens, model.width
        return _in_flight(fresh, bptt, bptt.span, shape, dealt(saved, rank, world, bptt.windows))


@dataclass(frozen=True)
class TransitionProgram(_OnLabels):
    """The cell on label shards (Eq. 3)."""

    teacher: Location
    vocabulary: int
    stage: str = "transition"

    @property
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""
        return self.config.transition.train

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

    @property
    def train(self) -> TrainConfig:
        """Optimisation of this stage."""
        return self.config.dmt.train

    def objective(self) -> Objective:
        """Build the RNN from the fitted cell and the teacher's decoder."""
        objective = Dmt(self.config.rnn_model, self.config.dmt, self.vocabulary)
        objective.rnn.cell.load_state_dict(load_weights(self.transition, "cell."))
        readout = load_weights(self.teacher, "decoder.")
        objective.rnn.readout.load_state_dict(readout)
        objective.teacher_readout.load_state_dict(readout)
        return objective

    def stream(self, rank: int, world: int, saved: list[State]) -> Stream:
        """Read the training labels; in mode `parallel`, keep windows of them in flight."""
        dmt, fresh = self.config.dmt, self.reader("train", rank, world)
        if dmt.mode != "parallel":
            return fresh
        return _in_flight(fresh, dmt, dmt.depth, None, dealt(saved, rank, world, dmt.windows))


def _in_flight(
    fresh: Stream,
    settings: DmtConfig | BpttConfig,
    depth: int,
    shape: tuple[int, int] | None,
    saved: State | None,
) -> Windows:
    factor, visits, seed = settings.windows, settings.visits, settings.train.seed
    return Windows(
        fresh, factor=factor, visits=visits, depth=depth, seed=seed, shape=shape, saved=saved
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
