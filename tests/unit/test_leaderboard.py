"""What a sweep found: the order of its trials, the CSV, the tables, the figures."""

import csv
import io

import numpy as np
import pytest

from smt_ray.data.storage import Location
from smt_ray.report import landscape
from smt_ray.report.leaderboard import axes_of, csv_text, sweep_page, terminal_table
from smt_ray.report.ranking import Entry, best, higher_is_better, ranked
from smt_ray.report.study_page import write_study

KEYS = ("model.memory-tokens", "model.encoder-depth", "transition.cell")


def entry(number, status="finished", score=None, fields=(4, 2, "gru"), **changes):
    figures = {"rnn_bits": score, "teacher_bits": 2.0, "drift": 0.1, "wall_seconds": 61.0}
    values = {"figures": figures if status == "finished" else {}} | changes
    swept = dict(zip(KEYS, fields, strict=True))
    return Entry(id=f"{number:03d}", status=status, fields=swept, **values)


ENTRIES = [
    entry(0, score=2.5),
    entry(1, "failed", error="boom, at step 3", fields=(4, 2, "mlp")),
    entry(2, score=2.25, fields=(8, 2, "gru")),
    entry(3, "stopped", fields=(8, 4, "gru"), figures={"stopped_step": 900, "stopped_bits": 4.1}),
    entry(4, score=2.75, fields=(16, 4, "mlp")),
    entry(5, score=2.3, fields=(8, 2, "mlp")),
]
POINTS = [(e.fields, e.figures["rnn_bits"]) for e in ENTRIES if e.status == "finished"]


def test_the_best_comes_first_and_those_without_a_score_last():
    assert [one.id for one in ranked(ENTRIES, "rnn_bits")] == [
        "002",
        "005",
        "000",
        "004",
        "001",
        "003",
    ]
    assert best(ENTRIES, "rnn_bits") == ENTRIES[2]
    assert best(ENTRIES, "bptt_bits") is None
    assert best([], "rnn_bits") is None
    rates = [entry(n, figures={"rnn_accuracy": value}) for n, value in enumerate((0.5, 0.9, None))]
    assert [one.id for one in ranked(rates, "rnn_accuracy")] == ["001", "000", "002"]
    found = {name: higher_is_better(name) for name in ("drift", "labels_per_s", "rnn_accuracy")}
    assert found == {"drift": False, "labels_per_s": True, "rnn_accuracy": True}


def test_the_csv_has_a_row_a_trial_with_every_figure_and_error():
    rows = list(csv.DictReader(io.StringIO(csv_text(ENTRIES))))
    assert [row["id"] for row in rows] == [one.id for one in ENTRIES]
    assert (rows[1]["status"], rows[1]["error"]) == ("failed", "boom, at step 3")
    assert rows[1]["rnn_bits"] == ""
    assert (rows[2]["model.memory-tokens"], rows[2]["rnn_bits"]) == ("8", "2.25")
    assert rows[3]["stopped_bits"] == "4.1"


def test_the_terminal_table_is_plain_narrow_and_tells_why_a_score_is_missing():
    lines = terminal_table("mine", ENTRIES, "rnn_bits").splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)
    assert next(line.split()[0] for line in lines if " gru " in line) == "002"
    assert "001: boom, at step 3" in lines
    assert "003: teacher at step 900: 4.100 bits a token" in lines


def test_memory_size_and_encoder_depth_are_the_maps_axes():
    assert axes_of(POINTS) == ["model.memory-tokens", "model.encoder-depth", "transition.cell"]
    turned = [({name: fields[name] for name in reversed(KEYS)}, score) for fields, score in POINTS]
    assert axes_of(turned) == ["model.memory-tokens", "model.encoder-depth", "transition.cell"]
    others = [({"a": n, "b": n % 2, "c": 1}, 1.0) for n in range(4)]
    assert axes_of(others) == ["a", "b"]


def test_a_cell_of_the_map_is_the_best_of_its_trials_and_empty_without_one():
    (axes,) = landscape.heat_figure(POINTS, KEYS[0], KEYS[1], "bits", higher=False).axes
    assert {text.get_text() for text in axes.texts} == {"2.500", "2.250", "2.750"}
    grid: np.ndarray = np.ma.filled(np.ma.asarray(axes.collections[0].get_array()), np.nan)
    assert np.array_equal(grid, [[2.5, 2.25, np.nan], [np.nan, np.nan, 2.75]], equal_nan=True)
    (axes,) = landscape.heat_figure(POINTS, KEYS[0], KEYS[1], "bits", higher=True).axes
    assert "2.300" in {text.get_text() for text in axes.texts}


def test_lines_run_from_axis_to_axis_and_the_best_is_drawn_last():
    points = [({"a": a, "b": b}, s) for a, b, s in ((1, "x", 3.0), (10, "y", 1.0), (100, "x", 2.0))]
    (axes,) = landscape.parallel_figure(points, "bits", higher=False).axes
    drawn = [np.asarray(line.get_xydata()) for line in axes.lines]
    lines: list[np.ndarray] = [line[:, 1] for line in drawn if len(line) == 3]
    assert np.allclose(np.stack(lines), np.array([[0, 0, 1], [1, 0, 0.5], [0.5, 1, 0]]))


@pytest.mark.parametrize("entries", [ENTRIES, ENTRIES[1:2], ENTRIES[:1], []])
def test_the_page_shows_what_there_is(entries, tmp_path):
    summary = {"name": "mine", "finished": 4, "stopped": 1, "failed": 1, "teachers": 3}
    summary |= {"label_sets": 3, "wall_seconds": 61.0}
    page = sweep_page(summary, entries, "rnn_bits", about="grid", command="python x", config={})
    write_study(Location.of(tmp_path), page)
    source = (tmp_path / "report.html").read_text()
    scored = any(one.status == "finished" for one in entries)
    assert ("All fields" in source) == ("python x" in source) == scored
    assert ("No trial has finished." in source) != scored
    assert ("model.encoder-depth and model.memory-tokens" in source) == (len(entries) > 1)
    assert ("boom, at step 3" in source) == any(one.error for one in entries)
