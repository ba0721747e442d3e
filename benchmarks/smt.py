"""SMT and BPTT of one source in this process, each stage for so many CPU-seconds.

The training loop is the product's, on a host that counts seconds of a reference core (`timer.py`)
in place of steps: schedules run over the share of the time that is used, scores do not count.
Shapes: B batch, L sequence, K memory tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.memory import RowsOf, Source, Stored
from benchmarks.timer import now
from smt_ray.config import RunConfig, RuntimeConfig, TrainConfig
from smt_ray.data.curriculum import growing
from smt_ray.data.reader import Stream
from smt_ray.data.rows import Batch
from smt_ray.data.windows import Windows
from smt_ray.evaluation.next_k import next_k
from smt_ray.evaluation.scores import Drift, Score, compare, score_rollouts
from smt_ray.model.encoder import Encoder
from smt_ray.model.rnn import RNN
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import Objective
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.train.checkpoint import State
from smt_ray.train.engine import Engine
from smt_ray.train.host import InProcess
from smt_ray.train.loop import train as run_loop
from smt_ray.train.programs import IN_FLIGHT

CPU = torch.device("cpu")
FINE = 10_000
"""Steps that a schedule over time is divided into."""
SELDOM = RuntimeConfig(checkpoint_every=10**9, log_every=100)
ENCODED_AT_ONCE = 64
"""Sequences whose memories are made at once."""


@dataclass(frozen=True)
class Scoring:
    """How an objective is scored while it is trained."""

    score: Callable[[Any], float]
    """A figure on held-out data, higher is better."""
    enough: float = float("inf")
    """Score that ends the training, twice in a row."""
    every: float = 10.0
    """CPU seconds between two scores."""
    best: bool = False
    """End with the weights of the highest score, as the training stages do."""


@dataclass
class Outcome:
    """What a training used, and its scores on the way."""

    seconds: float = 0.0
    """CPU seconds."""
    steps: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Inputs read."""
    scores: list[tuple[float, float]] = field(default_factory=list)
    """(CPU seconds, score) in order."""

    def solved_after(self, enough: float) -> float | None:
        """Return the CPU seconds of the first score of at least `enough`."""
        return next((seconds for seconds, score in self.scores if score >= enough), None)


class Timed(InProcess):
    """This process, for so many CPU-seconds or steps: the schedule follows the greater share."""

    def __init__(self, seconds: float, steps: float, scoring: Scoring | None) -> None:
        """Begin; the clock starts when the loop has validated for the first time."""
        super().__init__()
        self.seconds, self.steps, self.scoring = seconds, steps, scoring
        self.outcome, self.share = Outcome(), 0.0
        self._due = scoring.every if scoring else float("inf")
        self._kept: State = {}
        self._since: float | None = None

    def engine(self, objective: Objective, train: TrainConfig) -> Engine:
        """Return a plain engine."""
        self.objective = objective
        return super().engine(objective, train)

    def position(self, done: int) -> float:
        """Return the share of the time or the steps that is used, in `FINE` parts."""
        if done > self.outcome.steps:
            self._read_clock()
            self.outcome.steps = done
        if self._since is not None and self.outcome.seconds >= self.seconds:
            self.share = 1.0
        elif self.seconds:
            self.share = max(self.outcome.seconds / self.seconds, done / self.steps)
        return self.share * FINE

    def stop_requested(self, done: int, loss: float, rate: float) -> bool:
        """Score if it is time; return whether two scores in a row were enough."""
        if self.scoring and self.outcome.seconds >= self._due:
            with self.aside():
                self._score(self.scoring)
            last = [value for _, value in self.outcome.scores[-2:]]
            return len(last) == 2 and min(last) >= self.scoring.enough
        return False

    def _score(self, scoring: Scoring) -> None:
        self._due = self.outcome.seconds + scoring.every
        value = scoring.score(self.objective)
        self.outcome.scores.append((self.outcome.seconds, value))
        if scoring.best and value == max(score for _, score in self.outcome.scores):
            state = self.objective.state_dict()
            self._kept = {name: weight.clone() for name, weight in state.items()}

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Stop the clock for a while."""
        if self._since is not None:
            self._read_clock()
        yield
        self._since = now()

    def _read_clock(self) -> None:
        assert self._since is not None
        at = now()
        self.outcome.seconds += at - self._since
        self._since = at

    def finish(self) -> None:
        """Take the weights of the best score, where that is asked for and they are not the last."""
        if self._kept and self.scoring:
            best = max(score for _, score in self.outcome.scores)
            if self.scoring.score(self.objective) < best:
                self.objective.load_state_dict(self._kept)


@dataclass(frozen=True)
class InMemory:
    """A stage of a run on streams in memory."""

    config: RunConfig
    stage: str
    made: Objective
    training: Stream
    group: int = 1

    @property
    def train(self) -> TrainConfig:
        """Optimisation of the stage, its schedule in `FINE` parts."""
        own = replace(self.config.stages()[self.stage], steps=FINE)
        return replace(own, validate_every=10**9, validation_sequences=1)

    def objective(self) -> Objective:
        """Return the objective."""
        return self.made

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Return the training stream."""
        return self.training

    def validation(self, rank: int, world: int) -> Stream:
        """Return the first training batch again: the scores count, not this."""
        return Stored([self.training.batch(0)])


def train(
    config: RunConfig,
    stage: str,
    objective: Objective,
    stream: Callable[[Timed], Stream],
    seconds: float,
    *,
    steps: float = float("inf"),
    scoring: Scoring | None = None,
) -> Outcome:
    """Train until the time or the steps are used, or two scores in a row are enough.

    Args:
        config: the run.
        stage: which of its optimisations counts; its number of steps does not.
        objective: what is trained.
        stream: makes the batches, given the host that knows the share of the time that is used.
        seconds: CPU seconds.
        steps: most steps.
        scoring: scores on the way, if any.
    """
    host = Timed(seconds, steps, scoring)

    def count(module: torch.nn.Module, arguments: tuple[Batch]) -> None:
        if module.training:
            host.outcome.tokens += arguments[0]["inputs"].numel()

    counting = objective.register_forward_pre_hook(count)
    run_loop(InMemory(config, stage, objective, stream(host)), host, SELDOM)
    counting.remove()
    host.finish()
    return host.outcome


@dataclass(frozen=True)
class Shares:
    """How the CPU seconds of SMT are divided; what a stage leaves goes to DMT."""

    teacher: float = 0.7
    labels: float = 0.15
    """At most; the first batch is labelled whatever it takes."""
    transition: float = 0.05


@dataclass
class Trained:
    """A result of SMT before DMT: the networks, and what each stage used."""

    teacher: Teacher
    labels: list[Batch]
    fitted: Transition
    stages: dict[str, Outcome] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """CPU seconds of all stages so far."""
        return sum(stage.seconds for stage in self.stages.values())


def one_step_gradients(config: RunConfig, rate: float, **changes: Any) -> RunConfig:
    """Return a run whose DMT has gradients of one step, as in Eq. 6, at a peak rate of its own.

    `changes` are of other fields of `dmt`: with mode `sequential` it is the paper's loop.
    """
    dmt = {"unroll": False, "depth": 1, "dynamics": 10.0, "fade": 0.0, "learning_rate": rate}
    return config.update(
        {"dmt": {**dmt, "global_batch": config.transition.global_batch, **changes}}
    )


def train_teacher(
    config: RunConfig,
    source: Source,
    seconds: float,
    shares: Shares,
    labelled: int,
    scoring: Scoring | None = None,
) -> Trained:
    """Train the teacher, label `labelled` sequences and fit the cell to them."""
    torch.manual_seed(config.seed)
    teacher = Teacher(config.model, config.loss, source.vocabulary, config.seed, dense=config.dense)
    stream = _growing(source, config.teacher.global_batch, config.teacher.curriculum, config.seed)
    limit = seconds * shares.teacher
    outcome = train(config, "teacher", teacher, stream, limit, scoring=scoring)
    began, batch = now(), config.dmt.global_batch
    fresh = source.training(batch)
    labels = label(teacher.encoder, fresh, labelled // batch, seconds * shares.labels)
    tokens = sum(part["inputs"].numel() for part in labels)
    made = Outcome(seconds=now() - began, tokens=tokens)
    fitted = Transition(config.model, source.vocabulary)
    fitted.cell.load_state_dict(teacher.cell.state_dict())
    limit = seconds * shares.transition
    fit = train(config, "transition", fitted, lambda _: Stored(labels), limit)
    return Trained(teacher, labels, fitted, {"teacher": outcome, "labels": made, "transition": fit})


def _growing(source: Source, batch: int, stages: int, seed: int) -> Callable[[Timed], Stream]:
    """Return batches of a source, the sequences of the first ones short if `stages` > 1."""
    return lambda host: growing(
        source.training(batch), source.data, stages, lambda _: host.share,
        rows=batch, seed=seed, rank=0, world=1,
    )  # fmt: skip


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
    seconds: float,
    *,
    steps: float = float("inf"),
    scoring: Scoring | None = None,
) -> tuple[Dmt, Outcome]:
    """Train the fitted RNN on its own memories for the CPU seconds or steps given."""
    dmt, decoder = config.dmt, trained.teacher.decoder.state_dict()
    objective = Dmt(config.model, dmt, source.vocabulary, config.experimental.readout)
    objective.rnn.cell.load_state_dict(trained.fitted.cell.state_dict())
    objective.rnn.readout.load_state_dict(decoder)
    objective.teacher_readout.load_state_dict(decoder)

    def stream(_: Timed) -> Stream:
        fresh = Stored(trained.labels)
        if dmt.mode != "parallel":
            return fresh
        length = config.data.sequence_length
        return Windows(
            RowsOf(fresh), factor=IN_FLIGHT, visits=dmt.visits, depth=dmt.depth, seed=config.seed,
            length=length,
        )  # fmt: skip

    return objective, train(config, "dmt", objective, stream, seconds, steps=steps, scoring=scoring)


def with_bptt(config: RunConfig, rate: float, **unroll: Any) -> RunConfig:
    """Return a run with BPTT at a peak rate, unrolled as the fields say."""
    return config.update({"bptt": {"steps": FINE, "learning_rate": rate}, "unroll": unroll})


def train_bptt(
    config: RunConfig,
    source: Source,
    seconds: float,
    *,
    start: RNN | None = None,
    curriculum: int = 1,
    scoring: Scoring | None = None,
) -> tuple[RNN, Outcome]:
    """Train an RNN by unrolling it, from fresh weights or those of `start`."""
    torch.manual_seed(config.seed)
    model, unroll = config.model, config.unroll
    objective = Bptt(model, unroll, source.vocabulary)
    if start is not None:
        objective.rnn.load_state_dict(start.state_dict())
    grown = _growing(source, config.bptt.global_batch, curriculum, config.seed)

    def stream(host: Timed) -> Stream:
        fresh, shape = grown(host), (model.memory_tokens, model.width)
        if unroll.mode != "parallel":
            return fresh
        return Windows(
            RowsOf(fresh), factor=IN_FLIGHT, visits=unroll.visits, depth=unroll.span,
            seed=config.seed, length=config.data.sequence_length, shape=shape,
        )  # fmt: skip

    return objective.rnn, train(config, "bptt", objective, stream, seconds, scoring=scoring)


def teacher_score(teacher: Teacher, held: Batch) -> Score:
    """Score the encoder's memories through the decoder's first target."""
    readouts = {"teacher": teacher.decoder}
    return compare(teacher.encoder, readouts, {}, parts(held), CPU)[0]["teacher"]


@torch.no_grad()
def told_ahead(teacher: Teacher, held: Batch) -> Score:
    """Score the decoder on the target after the next: what a memory holds, not what it looks up."""
    memory = encode(teacher.encoder, held)
    score = next_k(memory, teacher.decoder, held["inputs"], held["targets"], 2)
    score.sums = score.sums[:, 1:]
    score.covered = int(score.sums[2].sum())
    return score


def rnn_score(rnn: RNN, held: Batch) -> Score:
    """Score a rollout from the empty memory."""
    return score_rollouts({"rnn": rnn}, parts(held), CPU)["rnn"]


def labelled(encoder: Encoder, held: Batch) -> Batch:
    """Return held-out sequences with their memories."""
    return {**held, "memory": encode(encoder, held)}


@torch.no_grad()
def label_drift(rnn: RNN, held: Batch) -> Drift:
    """Measure how far a rollout from the empty memory is from held-out labels."""
    drift = Drift()
    for part in parts(held):
        drift.add(rnn.rollout(part["inputs"]), part["memory"])
    return drift


def parts(batch: Batch, rows: int = 256) -> list[Batch]:
    """Cut a batch into smaller ones."""
    names = [name for name, value in batch.items() if value.dim()]
    cut = [batch[name].split(rows) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*cut, strict=True)]
