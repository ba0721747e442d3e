"""One method on one task, length and seed, within so many CPU-seconds: a cell of the table.

Shapes: B sequences, L inputs in a sequence.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.budget import Outcome, Scoring
from benchmarks.pool import Result
from benchmarks.smt import (
    Shares,
    Source,
    bptt_settings,
    one_step_gradients,
    rnn_score,
    seeded,
    teacher_score,
    told_ahead,
    train_bptt,
    train_dmt,
    train_teacher,
)
from benchmarks.timer import now
from smt_ray.config import BpttConfig, RunConfig, TaskConfig
from smt_ray.data.reader import Batch, Stream
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import hashed
from smt_ray.pipeline.recipes import on_task
from smt_ray.tasks import TASKS

OURS = ("smt", "smt_curriculum", "smt_finetune", "smt_unrolled", "smt_unrolled_curriculum")
CONTROLLED = ("smt", "smt_unrolled", "smt_unrolled_curriculum")
"""Methods with a control of their DMT, on the first seed."""
UNROLLED = ("bptt", "bptt_curriculum", "bptt_truncated", "bptt_parallel", "lstm")
SOLVED = 0.95
ENOUGH = 0.999
"""Score that ends DMT or BPTT early, twice in a row; a teacher goes on, for its cell's sake."""
SECONDS = 300.0
SHARES = Shares(teacher=0.5, transition=0.1)
FINETUNE = 0.3
"""Share of the time that `smt_finetune` leaves to BPTT, after all stages of SMT."""
FINETUNE_RATE = 2e-3
ONE_STEP_RATE, ONE_STEP_RATES = 5e-4, {"keysvalues": 2e-3}
"""Peak rates of DMT with gradients of one step."""
LABELLED = 4096
"""Sequences that SMT labels in a cell of `SECONDS`; in a longer one as many more."""
HELD_OUT = 1024
TRUNCATED = BpttConfig(mode="truncated", span=32)
SPAN = 8
"""Timesteps of a part in `bptt_parallel`, on all tasks."""


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    task: str
    length: int
    method: str
    """With the paper's DMT: `smt`, `smt_curriculum` (of the teacher's lengths), `smt_finetune`
    (which ends with BPTT). With the preset's: `smt_unrolled`, `smt_unrolled_curriculum`. `bptt`,
    `bptt_curriculum`, `bptt_truncated`, `bptt_parallel`, `lstm` (unnormalised, by BPTT)."""
    seed: int
    rate: float = 0.0
    """Peak learning rate of BPTT; SMT has its preset's."""
    seconds: float = SECONDS
    """CPU seconds for all stages together."""

    @property
    def name(self) -> str:
        """Name of its result."""
        rate = f"-rate{self.rate:g}" if self.rate else ""
        seconds = f"-{self.seconds:g}s" if self.seconds != SECONDS else ""
        return f"{self.task}-L{self.length}-{self.method}{rate}{seconds}-seed{self.seed}"


class Generated(Stream):
    """Fresh sequences of a task in every batch; easier ones, too, where they are for training."""

    def __init__(
        self, task: str, config: TaskConfig, length: int, rows: int, seed: int, *, training: bool
    ) -> None:
        """Remember what to draw."""
        self.task, self.config, self.length = TASKS[task], config, length
        self.rows, self.seed, self.training = rows, seed, training

    def batch(self, step: int) -> Batch:
        """Draw the batch of `step`."""
        seed = int(hashed(self.seed, step))
        inputs, targets = self.task.generate(
            self.config, self.length, self.rows, seed, training=self.training
        )
        ids = torch.arange(self.rows) + step * self.rows
        return {"sequence_id": ids, "inputs": inputs, "targets": targets}


class TaskSource(Source):
    """A task as SMT and BPTT take it; with `growing`, training sequences start short."""

    def __init__(self, config: RunConfig, seed: int, growing: float = 0.0) -> None:
        """Draw from `seed`; `growing` is the CPU seconds from now on over which lengths reach L."""
        self.config, self.seed, self.growing = config, seed, growing
        self.began = now()
        self.task = config.data.source.removeprefix("task:")
        self.vocabulary = TASKS[self.task].vocabulary(config.data.task)

    def training(self, batch: int) -> Stream:
        """Return fresh training batches."""
        length = self.config.data.sequence_length
        if not self.growing:
            return self._stream(length, batch, self.seed, training=True)
        lengths = [max(length // n, self.least) for n in (4, 2, 1)]
        stages = [self._stream(least, batch, self.seed, training=True) for least in lengths]
        return Growing(stages, self.growing, self.began)

    @property
    def least(self) -> int:
        """Shortest length at which the task exists."""
        task, config = TASKS[self.task], self.config.data.task
        for length in range(1, self.config.data.sequence_length):
            try:
                task.check(config, length)
            except ValueError:
                continue
            return length
        return self.config.data.sequence_length

    def held_out(self, split: str = "validation", times: int = 1) -> Batch:
        """Return sequences of L * `times` inputs that no training sees."""
        seed = -1 - ["validation", "test"].index(split)
        length = self.config.data.sequence_length * times
        return self._stream(length, HELD_OUT // times, seed, training=False).batch(0)

    def _stream(self, length: int, rows: int, seed: int, *, training: bool) -> Generated:
        return Generated(self.task, self.config.data.task, length, rows, seed, training=training)


class Growing(Stream):
    """A curriculum: each of several streams for an equal share of the CPU time.

    Scores on the way count here, as they do not in `budget.train`: the last stream begins early.
    """

    def __init__(self, streams: Sequence[Stream], seconds: float, began: float) -> None:
        """Take turns for `seconds` since `began`, then go on with the last."""
        self.streams, self.share, self.began = streams, seconds / len(streams), began

    def batch(self, step: int) -> Batch:
        """Return the batch of the stream whose time it is."""
        turn = int((now() - self.began) / self.share)
        return self.streams[min(turn, len(self.streams) - 1)].batch(step)


def run_cell(cell: Cell) -> Result:
    """Train and score one cell."""
    config = on_task("tiny", f"task:{cell.task}", cell.length)
    result = _smt(cell, config) if cell.method in OURS else _bptt(cell, config)
    return {**asdict(cell), **result}


def _smt(cell: Cell, config: RunConfig) -> dict[str, Any]:
    """Train all stages of SMT, then BPTT, or on the first seed as many steps of DMT's control."""
    config = seeded(config, cell.seed)
    seconds = cell.seconds * (1 - FINETUNE if cell.method == "smt_finetune" else 1)
    if not cell.method.startswith("smt_unrolled"):
        rate = ONE_STEP_RATES.get(cell.task, ONE_STEP_RATE)
        config = one_step_gradients(config, rate, mode="sequential")
    growing = seconds * SHARES.teacher if cell.method.endswith("curriculum") else 0.0
    source = TaskSource(config, cell.seed, growing)
    validation, test = source.held_out("validation"), source.held_out("test")
    longer = source.held_out("test", 4)

    def accuracy(training: Dmt | Bptt) -> float:
        return rnn_score(training.rnn, validation).accuracy

    scoring = Scoring(accuracy, enough=ENOUGH)
    trained = train_teacher(
        config, source, seconds, SHARES, round(LABELLED * max(1.0, cell.seconds / SECONDS)),
        Scoring(lambda teacher: teacher_score(teacher, validation).accuracy),
    )  # fmt: skip

    left = seconds - trained.seconds
    dmt, outcome = train_dmt(config, source, trained, config.dmt, left, scoring=scoring)
    rnn, stages = dmt.rnn, {**trained.stages, "dmt": outcome}
    before_finetune = one_step = None
    if cell.method in CONTROLLED and cell.seed == 0:
        mode = replace(config.dmt, mode="one_step")
        control, _ = train_dmt(config, source, trained, mode, 4 * left, steps=outcome.steps)
        one_step = rnn_score(control.rnn, test).accuracy
    elif cell.method == "smt_finetune":
        before_finetune = rnn_score(rnn, test).accuracy
        used = sum(stage.seconds for stage in stages.values())
        settings = bptt_settings(config, FINETUNE_RATE, cell.seed)
        rnn, stages["finetune"] = train_bptt(
            config.model, source, settings, cell.seconds - used, start=rnn, scoring=scoring
        )
    return {
        "accuracy": rnn_score(rnn, test).accuracy,
        "bits": rnn_score(rnn, validation).bits,
        "before_finetune": before_finetune,
        "one_step": one_step,
        "teacher": teacher_score(trained.teacher, test).accuracy,
        "told_ahead": told_ahead(trained.teacher, test).accuracy,
        "accuracy_4L": rnn_score(rnn, longer).accuracy,
        "teacher_4L": teacher_score(trained.teacher, longer).accuracy,
        "solved_after": _solved_after(stages),
        "teacher_solved_after": stages["teacher"].solved_after(SOLVED),
        "used": sum(stage.seconds for stage in stages.values()),
        "tokens": sum(stage.tokens for stage in stages.values()),
        "stages": {
            name: {"seconds": stage.seconds, "steps": stage.steps, "tokens": stage.tokens}
            for name, stage in stages.items()
        },
        "scores": {name: stage.scores for name, stage in stages.items() if stage.scores},
    }


def _solved_after(stages: dict[str, Outcome]) -> float | None:
    """Return the CPU seconds, of all stages so far, at which the RNN first had solved the task."""
    used = 0.0
    for name, stage in stages.items():
        after = stage.solved_after(SOLVED) if name in {"dmt", "finetune"} else None
        if after is not None:
            return used + after
        used += stage.seconds
    return None


def _bptt(cell: Cell, config: RunConfig) -> dict[str, Any]:
    """Train the same cell and readout by unrolling."""
    model = config.model
    if cell.method == "lstm":  # it has gates of its own, and halves its tokens: one more if odd
        even = model.memory_tokens + model.memory_tokens % 2
        model = replace(model, cell="lstm", write_gate=False, memory_tokens=even)
    growing = cell.seconds if cell.method == "bptt_curriculum" else 0.0
    source = TaskSource(config, cell.seed, growing)
    validation, test = source.held_out("validation"), source.held_out("test")
    mode = BpttConfig()
    if cell.method == "bptt_truncated":
        mode = TRUNCATED
    elif cell.method == "bptt_parallel":  # one that stays for a visit a part ends as a rollout
        mode = BpttConfig(mode="parallel", span=SPAN, visits=cell.length / SPAN)
    settings = bptt_settings(config, cell.rate, cell.seed)
    scoring = Scoring[Bptt](lambda bptt: rnn_score(bptt.rnn, validation).accuracy, enough=ENOUGH)
    rnn, outcome = train_bptt(model, source, settings, cell.seconds, mode=mode, scoring=scoring)
    return {
        "accuracy": rnn_score(rnn, test).accuracy,
        "bits": rnn_score(rnn, validation).bits,
        "accuracy_4L": rnn_score(rnn, source.held_out("test", 4)).accuracy,
        "solved_after": outcome.solved_after(SOLVED),
        "used": outcome.seconds,
        "tokens": outcome.tokens,
        "stages": {"bptt": {"seconds": outcome.seconds, "steps": outcome.steps}},
        "scores": {"bptt": outcome.scores},
    }
