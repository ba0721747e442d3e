"""Measurements in processes of their own: made once, each with the speed of its machine."""

import json
from functools import partial

import torch

from benchmarks.pool import measure


def threads(number):
    return {"number": number, "threads": torch.get_num_threads()}


def test_only_missing_measurements_are_made_each_with_its_speed(tmp_path, capsys):
    jobs = {f"job{number}": partial(threads, number) for number in range(2)}
    (tmp_path / "job0.json").write_text(json.dumps({"number": 7, "speed": 1.0}))
    results = measure(jobs, tmp_path)
    assert results["job0"] == {"number": 7, "speed": 1.0}
    assert results["job1"] == {"number": 1, "threads": 1, "speed": results["job1"]["speed"]}
    assert results["job1"]["speed"] > 1
    assert "1 of 1: job1" in capsys.readouterr().err
    assert measure(jobs, tmp_path) == results
    assert measure({}, tmp_path) == {}
