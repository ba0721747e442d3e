"""Cells of the table of tasks: all stages within the cell's seconds; the best of BPTT's rates."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import cells
from benchmarks.cells import FINETUNE, UNROLLED, Cell, TaskSource, run_cell
from benchmarks.smt import Trained, train_dmt
from benchmarks.tasks import RATES, best_rate
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
    monkeypatch.setattr(cells, "HELD_OUT", 64)
    monkeypatch.setattr(cells, "LABELLED", 64)


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
        monkeypatch.setattr(cells, name, partial(keep, getattr(cells, name)))
    return networks


def held_out(times=1, task="copy", length=8):
    return TaskSource(on_task("tiny", f"task:{task}", length), 0).held_out("test", times)


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
    now = [teacher.decoder(memory)[:, 0].argmax(1) for memory in memories]
    ahead = []
    for t, memory in enumerate(memories[:-1]):
        logits = teacher.decoder(memory, inputs[:, t + 1 : t + 2], torch.full((len(inputs),), t))
        ahead.append(logits[:, 1].argmax(1))
    return share(now, targets), share(ahead, targets[:, 1:])


@pytest.mark.parametrize("method", ["smt", "smt_curriculum", "smt_finetune", "smt_unrolled"])
def test_all_stages_of_smt_share_the_seconds(method):
    result = run_cell(Cell("copy", 8, method, 0, seconds=SECONDS))
    stages = {name: stage["seconds"] for name, stage in result["stages"].items()}
    assert sum(stages.values()) == pytest.approx(result["used"])
    assert SECONDS <= result["used"] < SECONDS + STEP
    assert list(stages)[:4] == ["teacher", "labels", "transition", "dmt"]
    assert (result["one_step"] is None) == (method not in {"smt", "smt_unrolled"})
    if method != "smt_finetune":
        assert len(stages) == 4
        assert result["before_finetune"] is None
    else:
        assert stages["finetune"] == pytest.approx(FINETUNE * SECONDS, abs=STEP)
        assert result["before_finetune"] is not None


@pytest.mark.parametrize("method", ["smt", "smt_finetune", "smt_unrolled", "bptt"])
def test_the_figures_are_those_of_the_networks_on_test_sequences(method, trained):
    result = run_cell(Cell("copy", 8, method, 0, 1e-3, seconds=0.5))
    rnns = [network for network in trained if isinstance(network, RNN)]
    finetuned = method == "smt_finetune"
    names = ("before_finetune", "accuracy") if finetuned else ("accuracy", "one_step")
    expected = {name: rnns_share(rnn, held_out()) for name, rnn in zip(names, rnns, strict=False)}
    expected["accuracy_4L"] = rnns_share(rnns[names.index("accuracy")], held_out(4))
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
        trained.append(given[3])
        return train_dmt(*given, **options)

    monkeypatch.setattr(cells, "train_dmt", remember)
    for method in ("smt", "smt_unrolled"):
        run_cell(Cell("modular", 8, method, 1, seconds=0.5))
    paper, ours = trained
    assert (paper.mode, paper.unroll, paper.dynamics) == ("sequential", False, 10.0)
    assert (paper.train.learning_rate, paper.train.global_batch) == (5e-4, 16)
    assert ours == on_task("tiny", "task:modular", 8).override("dmt.train.seed", 1).dmt
    assert ours.unroll


def test_in_a_curriculum_lengths_reach_that_of_the_task_and_stay(monkeypatch):
    clock = iter((5.0, 5.0, 6.9, 7.1, 9.1, 40.0))
    monkeypatch.setattr(cells, "now", lambda: next(clock))
    source = TaskSource(on_task("tiny", "task:copy", 32), 0, growing=6.0)
    lengths = [source.training(2).batch(step)["inputs"].shape[1] for step in range(5)]
    assert lengths == [8, 8, 16, 32, 32]


def test_an_lstm_takes_a_task_of_gated_and_odd_tokens(trained):
    model = on_task("tiny", "task:keysvalues", 32).model
    assert (model.write_gate, model.memory_tokens % 2) == (True, 1)
    result = run_cell(Cell("keysvalues", 32, "lstm", 0, 1e-3, seconds=0.5))
    (rnn,) = trained
    even = model.memory_tokens + 1
    assert rnn.config == replace(model, cell="lstm", write_gate=False, memory_tokens=even)
    assert rnn.cell.lstm.hidden_size == even // 2 * model.width
    assert result["accuracy"] == pytest.approx(rnns_share(rnn, held_out(1, "keysvalues", 32)))


def test_of_the_rates_that_were_measured_the_fewest_bits_count(tmp_path):
    best = partial(best_rate, "copy", 8, "bptt", tmp_path)
    assert best() == RATES[0]
    for rate, bits in {3e-3: 0.4, 3e-4: 0.2}.items():
        file = tmp_path / f"{Cell('copy', 8, 'bptt', 0, rate).name}.json"
        file.write_text(json.dumps({"bits": bits, "rate": rate, "seed": 0, "seconds": 300.0}))
    longer = {"bits": 0.1, "rate": 1e-3, "seed": 0, "seconds": 900.0}
    name = Cell("copy", 8, "bptt", 0, 1e-3, 900.0).name
    (tmp_path / f"{name}.json").write_text(json.dumps(longer))
    assert best() == 3e-4
