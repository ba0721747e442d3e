"""SMT and BPTT of one source in this process: teacher, labels, transition, DMT; or an unrolled RNN.

Shapes: B batch, L sequence, K memory tokens, D width.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.budget import Outcome, Scoring, train
from benchmarks.timer import now
from smt_ray.config import BpttConfig, DmtConfig, ModelConfig, RunConfig, TrainConfig
from smt_ray.data.reader import Batch, Stream
from smt_ray.data.windows import Windows
from smt_ray.evaluation.next_k import foresight
from smt_ray.evaluation.scores import Drift, Score, compare, score_rollouts
from smt_ray.model.encoder import Encoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition

CPU = torch.device("cpu")
FULL = BpttConfig()
ENCODED_AT_ONCE = 64
"""Sequences whose memories are made at once."""


class Source(Protocol):
    """Where sequences come from."""

    vocabulary: int

    def training(self, batch: int) -> Stream:
        """Return a stream of training batches of `batch` sequences."""

    def held_out(self) -> Batch:
        """Return the sequences that are scored."""


@dataclass(frozen=True)
class Shares:
    """How the CPU seconds of SMT are divided; what a stage leaves goes to DMT."""

    teacher: float = 0.7
    labels: float = 0.15
    """At most; the first batch is labelled whatever it takes."""
    transition: float = 0.05


@dataclass
class Trained:
    """A result of SMT: the networks, and what each stage used."""

    teacher: Teacher
    labels: list[Batch]
    fitted: Transition
    stages: dict[str, Outcome] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """CPU seconds of all stages so far."""
        return sum(stage.seconds for stage in self.stages.values())


class Stored(Stream):
    """Label batches in memory, again and again."""

    def __init__(self, batches: list[Batch]) -> None:
        """Keep the batches."""
        self.batches = batches

    def batch(self, step: int) -> Batch:
        """Return batch `step`, from the first again after the last."""
        return self.batches[step % len(self.batches)]


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """Return a run all of whose stages have `seed`."""
    for stage in ("teacher", "transition.train", "dmt.train"):
        config = config.override(f"{stage}.seed", seed)
    return config


def one_step_gradients(config: RunConfig, rate: float, **changes: Any) -> RunConfig:
    """Return a run whose DMT has gradients of one step, as in Eq. 6, at a peak rate of its own.

    `changes` are of other fields of `dmt`: with mode `sequential` it is the paper's loop.
    """
    train = {"learning_rate": rate, "global_batch": config.transition.train.global_batch}
    dmt = {"unroll": False, "depth": 1, "dynamics": 10.0, "fade": 0.0, "train": train}
    return config.update({"dmt": {**dmt, **changes}})


def train_teacher(
    config: RunConfig,
    source: Source,
    seconds: float,
    shares: Shares,
    labelled: int,
    scoring: Scoring[Teacher] | None = None,
) -> Trained:
    """Train the teacher, label `labelled` sequences and fit the cell to them."""
    torch.manual_seed(config.teacher.seed)
    teacher = Teacher(config.model, config.loss, source.vocabulary, config.teacher.seed)
    outcome = train(
        teacher,
        config.teacher,
        source.training(config.teacher.global_batch),
        seconds * shares.teacher,
        scoring=scoring,
    )
    began = now()
    fresh = source.training(config.dmt.train.global_batch)
    batches = labelled // config.dmt.train.global_batch
    labels = label(teacher.encoder, fresh, batches, seconds * shares.labels)
    tokens = sum(batch["inputs"].numel() for batch in labels)
    made = Outcome(seconds=now() - began, tokens=tokens)
    fitted = Transition(config.model, source.vocabulary)
    fitted.cell.load_state_dict(teacher.cell.state_dict())
    limit = seconds * shares.transition
    fit = train(fitted, config.transition.train, Stored(labels), limit)
    return Trained(teacher, labels, fitted, {"teacher": outcome, "labels": made, "transition": fit})


def label(encoder: Encoder, stream: Stream, batches: int, seconds: float) -> list[Batch]:
    """Return batches with their memories in bfloat16, as the label store keeps them.

    It ends after `batches`, or after the first that is ready when the CPU seconds are used.
    """
    labelled: list[Batch] = []
    began = now()
    for step in range(batches):
        if labelled and now() - began > seconds:
            break
        batch = stream.batch(step)
        labelled.append({**batch, "memory": encode(encoder, batch).bfloat16()})
    return labelled


@torch.no_grad()
def encode(encoder: Encoder, batch: Batch) -> Float[Tensor, "B L K D"]:
    """Return the memories of a batch, made a part at a time."""
    return torch.cat([encoder(part) for part in batch["inputs"].split(ENCODED_AT_ONCE)])


def train_dmt(
    config: RunConfig,
    source: Source,
    trained: Trained,
    dmt: DmtConfig,
    seconds: float,
    *,
    steps: float = float("inf"),
    scoring: Scoring[Dmt] | None = None,
) -> tuple[Dmt, Outcome]:
    """Train the fitted RNN on its own memories for the CPU seconds or steps given."""
    objective = Dmt(config.model, dmt, source.vocabulary)
    objective.rnn.cell.load_state_dict(trained.fitted.cell.state_dict())
    objective.rnn.readout.load_state_dict(trained.teacher.decoder.state_dict())
    objective.teacher_readout.load_state_dict(trained.teacher.decoder.state_dict())
    stream: Stream = Stored(trained.labels)
    if dmt.mode == "parallel":
        stream = Windows(
            stream, factor=dmt.windows, visits=dmt.visits, depth=dmt.depth, seed=dmt.train.seed
        )
    return objective, train(objective, dmt.train, stream, seconds, steps=steps, scoring=scoring)


def bptt_settings(config: RunConfig, rate: float, seed: int) -> TrainConfig:
    """Return how BPTT is optimised: as the teacher is, but for its batch, peak rate and seed.

    The batch is larger, for a rollout of few rows takes as long as one of many: docs/log.md.
    """
    batch = config.bptt.train.global_batch
    return replace(config.teacher, global_batch=batch, learning_rate=rate, seed=seed)


def train_bptt(
    model: ModelConfig,
    source: Source,
    optimisation: TrainConfig,
    seconds: float,
    *,
    mode: BpttConfig = FULL,
    start: RNN | None = None,
    scoring: Scoring[Bptt] | None = None,
) -> tuple[RNN, Outcome]:
    """Train an RNN by unrolling it as `mode` says, from fresh weights or those of `start`."""
    torch.manual_seed(optimisation.seed)
    objective = Bptt(model, mode, source.vocabulary)
    if start is not None:
        objective.rnn.load_state_dict(start.state_dict())
    stream = source.training(optimisation.global_batch)
    if mode.mode == "parallel":
        stream = Windows(
            stream, factor=mode.windows, visits=mode.visits, depth=mode.span,
            seed=optimisation.seed, shape=(model.memory_tokens, model.width),
        )  # fmt: skip
    return objective.rnn, train(objective, optimisation, stream, seconds, scoring=scoring)


def teacher_score(teacher: Teacher, held: Batch) -> Score:
    """Score the encoder's memories through the decoder's first target."""
    readouts = {"teacher": teacher.decoder}
    return compare(teacher.encoder, readouts, {}, parts(held), CPU)[0]["teacher"]


@torch.no_grad()
def told_ahead(teacher: Teacher, held: Batch) -> Score:
    """Score the decoder on the target after the next: what a memory holds, not what it looks up."""
    memory = encode(teacher.encoder, held)
    score = foresight(memory, teacher.decoder, held["inputs"], held["targets"], 2)
    score.sums = score.sums[:, 1:]
    score.covered = int(score.sums[2].sum())
    return score


def rnn_score(rnn: RNN, held: Batch) -> Score:
    """Score a rollout from the empty memory."""
    return score_rollouts({"rnn": rnn}, parts(held), CPU)["rnn"]


@torch.no_grad()
def label_drift(rnn: RNN, labels: "Labelled") -> Drift:
    """Measure how far a rollout from the empty memory is from held-out labels."""
    drift = Drift()
    for part in parts(labels.batch):
        drift.add(rnn.rollout(part["inputs"]), part["memory"])
    return drift


class Labelled:
    """Held-out sequences with their memories."""

    def __init__(self, encoder: Encoder, held: Batch) -> None:
        """Encode them."""
        self.batch: Batch = {**held, "memory": encode(encoder, held)}

    def first(self, rows: int) -> "Labelled":
        """Return the first `rows` of them."""
        part = copy.copy(self)
        part.batch = {name: value[:rows] for name, value in self.batch.items()}
        return part


def parts(batch: Batch, rows: int = 256) -> list[Batch]:
    """Cut a batch into smaller ones."""
    names = [name for name, value in batch.items() if value.dim()]
    cut = [batch[name].split(rows) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*cut, strict=True)]
