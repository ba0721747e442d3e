"""Measurements in processes of their own: made once, each with the speed of its machine."""

import json
from functools import partial

import torch

from benchmarks.pool import EQUAL, measure, unequal


def threads(number):
    return {"number": number, "threads": torch.get_num_threads()}


def test_only_missing_measurements_are_made_and_unequal_machines_are_named(tmp_path, capsys):
    jobs = {f"job{number}": partial(threads, number) for number in range(2)}
    (tmp_path / "job0.json").write_text(json.dumps({"number": 7, "speed": 1.0}))
    results = measure(jobs, tmp_path)
    assert results["job0"]["number"] == 7
    assert results["job1"] == {"number": 1, "threads": 1, "speed": results["job1"]["speed"]}
    said = capsys.readouterr().err
    assert "1 of 1: job1" in said
    factor = unequal(results.values())
    assert factor > EQUAL
    assert f"speeds that differ by a factor of {factor:.1f}; delete the" in said
    assert measure(jobs, tmp_path) == results
    assert measure({}, tmp_path) == {}
