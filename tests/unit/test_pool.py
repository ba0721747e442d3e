"""Measurements in processes of their own: made once, each with the speed of its machine."""

import json
from functools import partial

import pytest
import torch

from benchmarks.pool import best_rate, measure


def threads(number):
    return {"number": number, "threads": torch.get_num_threads()}


def test_only_missing_measurements_are_made_each_with_its_speed(tmp_path, capsys):
    file = tmp_path / "some" / "results.json"
    jobs = {f"job{number}": partial(threads, number) for number in range(2)}
    file.parent.mkdir()
    before = {"job0": {"number": 7, "speed": 1.0}, "other": {"number": 9}}
    file.write_text(json.dumps(before))
    results = measure(jobs, file)
    assert results["job0"] == {"number": 7, "speed": 1.0}
    assert results["job1"] == {"number": 1, "threads": 1, "speed": results["job1"]["speed"]}
    assert results["job1"]["speed"] > 1
    assert "1 of 1: job1" in capsys.readouterr().err
    assert json.loads(file.read_text()) == {**before, **results}
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert measure(jobs, file) == results
    assert measure({}, tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("cells", "best"),
    [
        ([(1e-3, 0, 2.0), (3e-3, 0, 1.0), (8e-3, 1, 0.1)], 3e-3),
        ([(1e-3, 0, 1.0001), (3e-3, 0, 1.0002)], 3e-3),
        ([(1e-3, 0, 1.0001), (1e-3, 1, 5.0), (3e-3, 0, 1.0002)], 1e-3),
    ],
)
def test_the_fewest_bits_of_the_first_seed_count_then_the_most_seeds(cells, best):
    assert best_rate([{"rate": r, "seed": s, "bits": b} for r, s, b in cells]) == best
