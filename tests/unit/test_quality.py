"""Which runs a study makes, which curves they are, and what they say of the memory's size."""

import pytest

from smt_ray.config import RunConfig
from smt_ray.studies.quality import compression_rows, curves, quantity, training_flops, trials
from smt_ray.studies.space import Choice

CONFIG = RunConfig(name="study")
WIDTH, SLOTS = Choice("model.width", (32, 64, 128)), Choice("model.memory-tokens", (4, 8))


def test_axes_start_from_the_run_and_meet_in_it():
    found = trials(CONFIG, [WIDTH, SLOTS], product=False)
    assert [trial.fields for trial in found] == [
        {"model.width": 32},
        {"model.width": 64},  # the run itself, as are 8 memory tokens
        {"model.width": 128},
        {"model.memory-tokens": 4},
    ]
    assert found[0].config.name == "study.model.width-32"
    assert found[0].config.model.width == 32
    assert len(trials(CONFIG, [WIDTH, SLOTS], product=True)) == 6
    with pytest.raises(ValueError, match=r"^quality=model.width=6: model.heads=4: must divide"):
        trials(CONFIG, [Choice("model.width", (6,))], product=False)


def row(width, slots, flops, bits):
    return {
        "run": f"{width}-{slots}",
        "fields": {"model.width": width, "model.memory-tokens": slots},
        "parameters": width**2,
        "parameters_teacher": 3 * width**2,
        "context": 128,
        "memory": width * slots,
        "tokens": 1e6,
        "flops": flops,
        "bptt_flops": None,
        "teacher_bits": bits - 0.1,
        "rnn_bits": bits,
        "bptt_bits": None,
    }


ROWS = [
    row(width, slots, flops=width**2 * slots, bits=8 * width**-0.3 * slots**-0.1)
    for width in (32, 64, 128)
    for slots in (4, 8)
]


def test_a_curve_varies_one_field_alone():
    found = curves(ROWS, [WIDTH, SLOTS], CONFIG)
    names = {(c.field, c.given, c.measure): c for c in found}
    curve = names["model.width", "model.memory-tokens=4", "rnn_bits"]
    assert curve.x == (32**2, 64**2, 128**2)
    assert curve.law is not None
    assert curve.law.c == pytest.approx(0.15)
    own = names["model.width", "", "teacher_bits"]
    assert own.x == (3 * 32**2, 3 * 64**2, 3 * 128**2)
    assert names["model.memory-tokens", "", "rnn_bits"].x == (256, 512)
    assert names["model.memory-tokens", "", "rnn_bits"].law is None
    assert not any(c.measure == "bptt_bits" for c in found)
    best = names["best of all runs", "", "rnn_bits"]
    assert best.loss == tuple(sorted(best.loss, reverse=True))
    assert own.row()["c_low"] <= own.row()["c"] <= own.row()["c_high"]


def test_fields_are_set_against_what_they_vary():
    assert quantity("model.width") == "parameters"
    assert quantity("data.sequence-length") == "context"
    assert quantity("teacher.steps") == "tokens"
    assert quantity("dmt.steps") == "flops"


def test_less_memory_costs_more():
    runs = [row(64, 8, 1e9, 2.0), row(64, 4, 2e9, 2.0), row(64, 4, 4e9, 1.9), row(64, 2, 8e9, 2.1)]
    found = [(r["target_bits"], r["memory"], r["flops"]) for r in compression_rows(runs, [2.1, 2])]
    assert found == [
        (2.1, 512, 1e9),
        (2.1, 256, 2e9),
        (2.1, 128, 8e9),
        (2, 512, 1e9),
        (2, 256, 2e9),
    ]
    assert compression_rows(runs[:1]) == []
    assert {r["target_bits"] for r in compression_rows(runs)} <= {r["rnn_bits"] for r in runs}


def test_compute_is_that_of_all_stages():
    config = CONFIG.update({"bptt": {"steps": 10}})
    flops = training_flops(config, 256, labels=128 * 10)
    assert set(flops) == {"teacher", "labels", "transition", "dmt", "bptt"}
    half = config.update({"teacher": {"steps": 500}})
    assert training_flops(half, 256, 0)["teacher"] == pytest.approx(flops["teacher"] / 2)
