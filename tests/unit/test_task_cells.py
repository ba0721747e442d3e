"""Cells of the table of tasks: all stages within the cell's seconds; the best of BPTT's rates."""

import json
from functools import partial

import pytest

from benchmarks import cells
from benchmarks.cells import FINETUNE, Cell, run_cell
from benchmarks.tasks import RATES, best_rate

SECONDS = 2.0
STEP = 0.5
"""Seconds that a stage may take beyond its end: a step, the labels of one batch."""


@pytest.fixture(autouse=True)
def few_sequences(monkeypatch):
    monkeypatch.setattr(cells, "HELD_OUT", 64)
    monkeypatch.setattr(cells, "LABELLED", 64)


@pytest.mark.parametrize("method", ["smt", "smt_finetune"])
def test_all_stages_of_smt_share_the_seconds(method):
    result = run_cell(Cell("copy", 8, method, 0, seconds=SECONDS))
    stages = {name: stage["seconds"] for name, stage in result["stages"].items()}
    assert sum(stages.values()) == pytest.approx(result["used"])
    assert SECONDS <= result["used"] < SECONDS + STEP
    if method == "smt":
        assert list(stages) == ["teacher", "labels", "transition", "dmt"]
        assert result["before_finetune"] is None
        assert 0 <= result["one_step"] <= 1
    else:
        assert stages["finetune"] == pytest.approx(FINETUNE * SECONDS, abs=STEP)
        assert 0 <= result["before_finetune"] <= 1
    assert 0 <= result["accuracy"] <= 1
    assert 0 <= result["told_ahead"] <= 1
    assert 0 <= result["teacher_4L"] <= 1


@pytest.mark.parametrize("method", ["bptt", "bptt_curriculum", "bptt_truncated", "lstm"])
def test_methods_that_unroll_take_the_same_seconds(method):
    result = run_cell(Cell("copy", 8, method, 0, 1e-3, SECONDS))
    assert SECONDS <= result["used"] < SECONDS + STEP
    assert result["tokens"] > 0


def test_an_lstm_takes_a_task_of_gated_and_odd_tokens():
    result = run_cell(Cell("keysvalues", 32, "lstm", 0, 1e-3, SECONDS))
    assert 0 <= result["accuracy"] <= 1


def test_of_the_rates_that_were_measured_the_fewest_bits_count(tmp_path):
    best = partial(best_rate, "copy", 8, "bptt", tmp_path)
    assert best() == RATES[0]
    for rate, bits in {3e-3: 0.4, 3e-4: 0.2}.items():
        file = tmp_path / f"{Cell('copy', 8, 'bptt', 0, rate).name}.json"
        file.write_text(json.dumps({"bits": bits}))
    assert best() == 3e-4
