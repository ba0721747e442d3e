"""The tables of tasks: which rate of BPTT counts, and which method of a row is the best."""

import pytest

from benchmarks import task_results


@pytest.fixture(autouse=True)
def no_figure(monkeypatch):
    monkeypatch.setattr(task_results, "draw", lambda *_, **__: None)


def cell(method, accuracy, *, bits=1.0, rate=0.0, seed=0):
    stage = {"seconds": 100.0, "steps": 10, "tokens": 1000}
    names = ("teacher", "labels", "transition", "dmt") if method == "smt" else ("bptt",)
    return {
        "task": "copy", "length": 32, "method": method, "seed": seed, "rate": rate,
        "seconds": 300.0, "accuracy": accuracy, "bits": bits, "accuracy_4L": 0.0,
        "solved_after": None, "used": 300.0, "tokens": 3000,
        "stages": dict.fromkeys(names, stage), "scores": {name: [(10.0, 0.5)] for name in names},
    }  # fmt: skip


def glance(*cells):
    results = {f"{number}-seed{made['seed']}": made for number, made in enumerate(cells)}
    return task_results.of_tasks(results)["glance"].splitlines()[2]


def test_the_rate_with_the_fewest_bits_on_the_first_seed_counts_and_of_equals_more_seeds():
    row = glance(
        cell("bptt", 0.9, bits=0.5, rate=1e-3),
        cell("bptt", 0.2, bits=0.4, rate=3e-3),
        cell("bptt", 0.4, bits=0.1, rate=3e-3, seed=1),
        cell("bptt", 0.8, bits=0.4, rate=8e-3),
        cell("bptt", 1.0, bits=0.0, rate=1e-4, seed=1),
    )
    assert "| 0.300 (2) |" in row


def test_the_best_of_the_same_cell_is_bold_where_not_all_are_alike():
    row = glance(cell("smt", 0.5), cell("bptt", 0.9, rate=1e-3), cell("lstm", 1.0, rate=3e-3))
    assert "| 0.500 (1) | **0.900 (1)** |" in row
    assert "| 1.000 (1) |" in row
    assert "**" not in glance(cell("smt", 0.06), cell("bptt", 0.07, rate=1e-3))
