"""The line of `benchmarks.tasks`: every figure is that of its cell; nothing is trained anew."""

import json
from dataclasses import asdict

import pytest

from benchmarks import tasks
from benchmarks.pool import RESULTS, Result, read
from benchmarks.tasks import RATES, Cell

SECONDS = 1.0
"""Of the cells, so that one which is missed is soon made."""


@pytest.fixture
def print_figures(tmp_path, capsys):
    """Return what the program prints, last, about cells of so many results, made before."""

    def run(cells, *arguments):
        file = tmp_path / "tasks.json"
        named = {cell.name: {**asdict(cell), **result} for cell, result in cells.items()}
        file.write_text(json.dumps(named))
        words = ["--results", str(file), "--seconds", str(SECONDS), *arguments]
        assert tasks.main(words) == 0
        assert read(file) == named  # none was made
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize(("task", "length"), tasks.QUICK)
def test_bptts_rates_of_the_quick_figures_were_measured(task, length):
    names = {Cell(task, length, "bptt", 0, rate).name for rate in RATES}
    assert len(names & read(RESULTS / "tasks.json").keys()) > 1


def test_the_quick_figures_are_those_of_their_cells_bptts_at_the_rate_of_the_results(
    print_figures, tmp_path_factory, monkeypatch
):
    results = tmp_path_factory.mktemp("results") / "tasks.json"
    monkeypatch.setattr(tasks, "FILE", results)
    best = {("retrieval", 32): 3e-3, ("retrieval", 64): 3e-4}  # copy was not measured
    measured = {
        cell.name: {**asdict(cell), "bits": bits}
        for pair, rate in best.items()
        for tried, bits in {1e-3: 0.8, rate: 0.6}.items()
        for cell in [Cell(*pair, "bptt", 0, tried)]
    }
    results.write_text(json.dumps(measured))

    cells: dict[Cell, Result] = {}
    expected: dict[str, float] = {}
    for number, pair in enumerate((("retrieval", 32), ("retrieval", 64), ("copy", 32)), start=1):
        for method, accuracy in {"smt": 0.1, "smt_unrolled": 0.4}.items():
            names = ("accuracy", "one_step", "teacher")
            result = {name: number + accuracy + n / 10 for n, name in enumerate(names)}
            cells[Cell(*pair, method, 0, seconds=SECONDS)] = result
        for rate in RATES:
            cells[Cell(*pair, "bptt", 0, rate, SECONDS)] = {"accuracy": number + rate}
        figures = {"smt": 0.1, "one_step": 0.2, "teacher": 0.3, "bptt": best.get(pair, 1e-3)}
        figures |= {"smt_unrolled": 0.4, "smt_unrolled_one_step": 0.5}
        prefix = f"{pair[0]}_L{pair[1]}"
        expected |= {f"{prefix}_{name}": number + value for name, value in figures.items()}
    with pytest.raises(SystemExit, match="2"):
        print_figures(cells, "--quick", "--seeds=2")
    found = print_figures(cells, "--quick")
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_full_figures_are_means_over_seeds_bptts_at_the_best_rate_of_the_first(print_figures):
    cells = {
        Cell("copy", 32, "bptt", 0, rate, SECONDS): {
            "accuracy": 0.1, "bits": 2.0, "rate": rate, "seed": 0, "seconds": SECONDS,
            "solved_after": None,
        }
        for rate in RATES
    }  # fmt: skip
    for seed, (accuracy, solved_after) in enumerate([(0.95, 0.5), (0.96, 0.7)]):
        for rate, bits in {3e-3: 0.5, 8e-3: 0.1 + seed}.items():
            cells[Cell("copy", 32, "bptt", seed, rate, SECONDS)] = {
                "accuracy": accuracy - rate, "bits": bits, "rate": rate, "seed": seed,
                "seconds": SECONDS, "solved_after": None if seed else 0.8,
            }  # fmt: skip
        cells[Cell("copy", 32, "smt", seed, seconds=SECONDS)] = {
            "accuracy": accuracy, "teacher": 0.2 + seed, "solved_after": solved_after,
            "one_step": None if seed else 0.3,
        }  # fmt: skip
    found = print_figures(
        cells, "--tasks=copy", "--lengths=32", "--methods", "smt", "bptt", "--seeds=2"
    )
    expected = {
        "smt": 0.955, "smt_solved": 2, "smt_seconds": 0.6, "teacher": 0.7, "one_step": 0.3,
        "bptt": 0.947, "bptt_solved": 1, "bptt_seconds": None,
    }  # fmt: skip
    assert {name: found[f"copy_L32_{name}"] for name in expected} == pytest.approx(expected)
