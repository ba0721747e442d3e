"""Cells of the table of tasks: all stages within the cell's seconds; the best of BPTT's rates."""

import json
import time
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from benchmarks import memory, tasks
from benchmarks.memory import TaskSource
from benchmarks.smt import Scoring, Trained, train_dmt, train_teacher
from benchmarks.tasks import RATES, SHARES, UNROLLED, Cell, rate_of, run_cell
from smt_ray.data.reader import Stream
from smt_ray.model.rnn import RNN
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.teacher import Teacher
from smt_ray.pipeline.recipes import on_task
from tests.samples import random_weights

SECONDS = 2.0
STEP = 0.5
"""Seconds that a stage may take beyond its end: a step, the labels of one batch."""


@pytest.fixture(autouse=True)
def few_sequences(monkeypatch):
    monkeypatch.setattr(memory, "HELD_OUT", 64)
    monkeypatch.setattr(tasks, "LABELLED", 64)


@pytest.fixture
def trained(monkeypatch):
    """The networks that cells train, in order, with random weights: no two answer alike."""
    networks: list[Teacher | RNN] = []

    def keep(train, *given, **options):
        result = train(*given, **options)
        first = result.teacher if isinstance(result, Trained) else result[0]
        network = first.rnn if isinstance(first, Dmt) else first
        networks.append(random_weights(network, len(networks)))
        return result

    for name in ("train_teacher", "train_dmt", "train_bptt"):
        monkeypatch.setattr(tasks, name, partial(keep, getattr(tasks, name)))
    return networks


def held_out(times=1, task="copy", length=8):
    return TaskSource(on_task("tiny", f"task:{task}", length).data, 0).held_out("test", times)


def share(answers, targets):
    """Return the share of the targets that are answered, by the answers of every timestep."""
    asked = targets != -100
    return (torch.stack(answers, dim=1)[asked] == targets[asked]).double().mean().item()


@torch.no_grad()
def rnns_share(rnn, batch):
    memory, answers = rnn.initial(len(batch["inputs"])), []
    for token in batch["inputs"].unbind(1):
        memory = rnn.step(memory, token)
        answers.append(rnn.logits(memory).argmax(1))
    return share(answers, batch["targets"])


@torch.no_grad()
def teachers_shares(teacher, batch):
    """Return the shares of the next targets, and of those after the next."""
    inputs, targets = batch["inputs"], batch["targets"]
    memories = teacher.encoder(inputs).unbind(1)
    now = [teacher.decoder(own)[:, 0].argmax(1) for own in memories]
    ahead = []
    for t, own in enumerate(memories[:-1]):
        logits = teacher.decoder(own, inputs[:, t + 1 : t + 2], torch.full((len(inputs),), t))
        ahead.append(logits[:, 1].argmax(1))
    return share(now, targets), share(ahead, targets[:, 1:])


@pytest.mark.parametrize("method", ["smt", "smt_curriculum", "smt_unrolled"])
def test_all_stages_of_smt_share_the_seconds(method):
    result = run_cell(Cell("copy", 8, method, 0, seconds=SECONDS))
    stages = {name: stage["seconds"] for name, stage in result["stages"].items()}
    assert sum(stages.values()) == pytest.approx(result["used"])
    assert SECONDS <= result["used"] < SECONDS + STEP
    assert list(stages) == ["teacher", "labels", "transition", "dmt"]
    assert result["one_step"] is not None
    assert run_cell(Cell("copy", 8, method, 1, seconds=0.5))["one_step"] is None


@pytest.mark.parametrize("method", ["smt", "smt_unrolled", "bptt"])
def test_the_figures_are_those_of_the_networks_on_test_sequences(method, trained):
    result = run_cell(Cell("copy", 8, method, 0, 1e-3, seconds=0.5))
    rnns = [network for network in trained if isinstance(network, RNN)]
    names = ("accuracy", "one_step")
    expected = {name: rnns_share(rnn, held_out()) for name, rnn in zip(names, rnns, strict=False)}
    expected["accuracy_4L"] = rnns_share(rnns[0], held_out(4))
    if method != "bptt":
        expected["teacher"], expected["told_ahead"] = teachers_shares(trained[0], held_out())
        expected["teacher_4L"], _ = teachers_shares(trained[0], held_out(4))
    assert {name: result[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("method", UNROLLED)
def test_methods_that_unroll_take_the_same_seconds(method):
    result = run_cell(Cell("copy", 8, method, 0, 1e-3, SECONDS))
    assert SECONDS <= result["used"] < SECONDS + STEP
    assert result["tokens"] > 0


def test_only_the_unrolled_methods_keep_the_presets_dmt(monkeypatch):
    trained = []

    def remember(*given, **options):
        trained.append(given[0].dmt)
        return train_dmt(*given, **options)

    monkeypatch.setattr(tasks, "train_dmt", remember)
    for method in ("smt", "smt_unrolled"):
        run_cell(Cell("modular", 8, method, 1, seconds=0.5))
    paper, ours = trained
    assert (paper.mode, paper.unroll, paper.dynamics) == ("sequential", False, 10.0)
    assert (paper.learning_rate, paper.global_batch) == (5e-4, 16)
    assert ours == on_task("tiny", "task:modular", 8).dmt
    assert ours.unroll


def test_a_curriculum_follows_the_clock_and_not_the_steps():
    lengths: list[int] = []

    class Watched(TaskSource):
        def training(self, batch):
            return Lengths(super().training(batch), lengths)

    config = on_task("tiny", "task:copy", 32).override("teacher.curriculum", 3)
    trained = train_teacher(config, Watched(config.data, 0), 4.0, SHARES, 16)
    whole = trained.stages["teacher"].steps
    # Of the streams only the last is watched: about a third of the time, so few of the steps.
    at_last = [length for length in lengths if length == 32]
    assert 0 < len(at_last) - 1 < whole / 2  # one more is labelled
    assert trained.stages["teacher"].tokens < whole * config.teacher.global_batch * 32


class Lengths(Stream):
    """Notes the length of each batch of another stream."""

    def __init__(self, inner, lengths):
        self.inner, self.lengths = inner, lengths

    def batch(self, step):
        batch = self.inner.batch(step)
        self.lengths.append(batch["inputs"].shape[1])
        return batch


def test_a_budget_of_steps_is_kept_and_its_scores_take_no_time():
    config = on_task("tiny", "task:copy", 8)
    source = TaskSource(config.data, 0)
    trained = train_teacher(config, source, 1.0, SHARES, 16)

    def slow(dmt):
        time.sleep(0.2)
        return 0.0

    scoring = Scoring(slow, every=0.0)
    _, outcome = train_dmt(config, source, trained, 1e9, steps=5.0, scoring=scoring)
    assert outcome.steps == 5
    assert outcome.tokens == 5 * config.dmt.global_batch * 8
    assert len(outcome.scores) >= 4
    assert outcome.seconds < STEP * 5
    best = Scoring(lambda dmt: -1.0, enough=-2.0, every=0.0)
    _, outcome = train_dmt(config, source, trained, 1e9, steps=50.0, scoring=best)
    assert outcome.steps <= 4  # two scores in a row were enough


def test_an_lstm_takes_a_task_of_gated_and_odd_tokens(trained):
    model = on_task("tiny", "task:keysvalues", 32).model
    assert (model.cell, model.memory_tokens % 2) == ("gated", 1)
    result = run_cell(Cell("keysvalues", 32, "lstm", 0, 1e-3, seconds=0.5))
    (rnn,) = trained
    even = model.memory_tokens + 1
    assert rnn.config == replace(model, cell="benchmarks.lstm:LstmCell", memory_tokens=even)
    assert rnn.cell.lstm.hidden_size == even // 2 * model.width
    assert result["accuracy"] == pytest.approx(rnns_share(rnn, held_out(1, "keysvalues", 32)))


def test_of_the_rates_that_were_measured_the_fewest_bits_count(tmp_path):
    file = tmp_path / "tasks.json"
    best = partial(rate_of, "copy", 8, "bptt", file)
    assert best() == RATES[0]
    cells = [(3e-3, 0.4, 300.0), (3e-4, 0.2, 300.0), (1e-3, 0.1, 900.0)]
    results = {
        cell.name: {**asdict(cell), "bits": bits}
        for rate, bits, seconds in cells
        for cell in [Cell("copy", 8, "bptt", 0, rate, seconds)]
    }
    file.write_text(json.dumps(results))
    assert best() == 3e-4
