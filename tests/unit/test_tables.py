"""The tables of docs/results.md are those of the measurements in docs/results/."""

from pathlib import Path

import pytest

from benchmarks.pool import RESULTS, read
from benchmarks.tables import TABLES, best_cells, over_seeds, table

PAGE = (Path(__file__).parents[2] / "docs" / "results.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_on_the_page(name):
    results = read(RESULTS / f"{name}.json")
    assert results
    tables = list(TABLES[name](results))
    assert all(table.count("\n") >= 2 for table in tables)
    for row in (row for found in tables for row in found.splitlines()):
        assert row in PAGE


def test_numbers_are_written_with_three_digits_and_none_as_a_dash():
    assert table(["a", "b"], [[0.12345, None], [3, "x"]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 0.123 | - |",
        "| 3 | x |",
    ]
    assert over_seeds([0.5]) == "0.500"
    assert over_seeds([0.5, 1.5]) == "1.000 (0.500 to 1.500)"
    assert over_seeds([]) is None


def test_cells_of_the_best_rate_count_for_all_seeds():
    own = {"task": "copy", "length": 8, "seconds": 1.0, "method": "bptt"}
    cells = [
        {**own, "rate": rate, "seed": seed, "bits": bits}
        for rate, seed, bits in [(1e-3, 0, 1.0), (3e-3, 0, 0.5), (3e-3, 1, 9.0)]
    ]
    assert best_cells(cells) == {("copy", 8, 1.0, "bptt"): (cells[1:], 2)}
