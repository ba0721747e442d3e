"""Cells of the table of tasks: all stages within the cell's seconds; the best of BPTT's rates."""

import json
from functools import partial

import pytest

from benchmarks import cells
from benchmarks.cells import FINETUNE, UNROLLED, Cell, TaskSource, run_cell
from benchmarks.smt import train_dmt
from benchmarks.tasks import RATES, best_rate
from smt_ray.recipes import on_task

SECONDS = 2.0
STEP = 0.5
"""Seconds that a stage may take beyond its end: a step, the labels of one batch."""


@pytest.fixture(autouse=True)
def few_sequences(monkeypatch):
    monkeypatch.setattr(cells, "HELD_OUT", 64)
    monkeypatch.setattr(cells, "LABELLED", 64)


@pytest.mark.parametrize("method", ["smt", "smt_curriculum", "smt_finetune", "smt_unrolled"])
def test_all_stages_of_smt_share_the_seconds(method):
    result = run_cell(Cell("copy", 8, method, 0, seconds=SECONDS))
    stages = {name: stage["seconds"] for name, stage in result["stages"].items()}
    assert sum(stages.values()) == pytest.approx(result["used"])
    assert SECONDS <= result["used"] < SECONDS + STEP
    assert list(stages)[:4] == ["teacher", "labels", "transition", "dmt"]
    assert (result["one_step"] is None) == (method != "smt")
    if method != "smt_finetune":
        assert len(stages) == 4
        assert result["before_finetune"] is None
    else:
        assert stages["finetune"] == pytest.approx(FINETUNE * SECONDS, abs=STEP)
        assert 0 <= result["before_finetune"] <= 1
    assert 0 <= result["accuracy"] <= 1
    assert 0 <= result["told_ahead"] <= 1
    assert 0 <= result["teacher_4L"] <= 1


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


def test_an_lstm_takes_a_task_of_gated_and_odd_tokens():
    result = run_cell(Cell("keysvalues", 32, "lstm", 0, 1e-3, SECONDS))
    assert 0 <= result["accuracy"] <= 1


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
