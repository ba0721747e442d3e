"""The tables of text and of images: which figure of which file stands in which cell."""

import json

import pytest

from benchmarks import results
from benchmarks.method import MODES


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    panels = {}
    monkeypatch.setattr(results, "draw", lambda name, found, *_, **__: panels.update({name: found}))
    return panels


def read(place, made):
    """Return what is read of so many results, written to files."""
    for name, result in made.items():
        (place / f"{name}.json").write_text(json.dumps(result))
    return results.read(place)


def rows(table):
    """Return the cells of a Markdown table by row, the first of which names it, and column."""
    head, _, *lines = (line[2:-2].split(" | ") for line in table.splitlines())
    return {line[0]: dict(zip(head[1:], line[1:], strict=True)) for line in lines}


def smt(first, *modes, seconds):
    """Return a result of SMT: `first` bits before DMT, 0.01 fewer with each mode after it."""
    names = ("before_dmt", *modes)
    made = {
        name: {"bits": first - n / 100, "drift": first / 10 - n / 100}
        for n, name in enumerate(names)
    }
    for mode in modes:
        made[mode]["track"] = [{"seconds": seconds[mode], "bits": first, "drift": first / 10}]
    return made


def method_results():
    """Return the results of two lengths, all modes at the longer one."""
    seconds = {"one_step": 1.0, "sequential": 9.0, "parallel": 4.0}
    return {
        "labels": {"causal": 90.0, "causal_R2": 60.0, "bidirectional": 2.0, "padded": 1.0},
        "encoder_causal": {"bits": 3.01},
        "encoder_bidirectional": {"bits": 4.01},
        "counted": {"order1": 3.3, "order2": 2.7},
        "smt_L32": smt(2.9, "parallel", seconds=seconds),
        "smt_L128": smt(2.5, *MODES, seconds=seconds),
        "smt_unrolled_L32": {"bits": 2.32},
        "smt_unrolled_L128": {"bits": 2.28},
        "bptt_L32-rate0.002": {"bits": 3.32, "rate": 2e-3, "steps": 30},
        "bptt_L128-rate0.002": {"bits": 3.28, "rate": 2e-3, "steps": 20},
        "bptt_L128-rate0.004": {"bits": 3.18, "rate": 4e-3, "steps": 21},
        "bptt_L128-rate0.004-seed1": {"bits": 3.14, "rate": 4e-3, "steps": 25},
        "bptt_truncated_L128-rate0.004": {"bits": 3.48, "rate": 4e-3, "steps": 22},
        "bptt_parallel_L32-rate0.008-visits4": {"bits": 3.08, "rate": 8e-3, "steps": 23},
    }


def test_text_has_its_modes_lengths_and_rates(tmp_path, drawn):
    page = results.of_method(read(tmp_path, method_results()))
    assert rows(page["modes"]) == {
        "before dmt": {"bits": "2.500", "drift (NMSE)": "0.250"},
        "one step": {"bits": "2.490", "drift (NMSE)": "0.240"},
        "sequential": {"bits": "2.480", "drift (NMSE)": "0.230"},
        "parallel": {"bits": "2.470", "drift (NMSE)": "0.220"},
    }
    assert rows(page["lengths"]) == {
        "L = 32": {
            "SMT and DMT": "2.890", "DMT unrolled": "2.320",
            "BPTT": "3.320", "BPTT, cut every 64": "-", "BPTT in parallel": "3.080",
        },
        "L = 128": {
            "SMT and DMT": "2.470", "DMT unrolled": "2.280",
            "BPTT": "3.160 (3.140 to 3.180)", "BPTT, cut every 64": "3.480",
            "BPTT in parallel": "-",
        },
    }  # fmt: skip
    assert page["rates"].splitlines()[2:] == [
        "| bptt_L128 | rate 0.002 | 1 | 3.280 | 20 |",
        "| bptt_L128 | rate 0.004 | 2 | 3.160 (3.140 to 3.180) | 23 |",
        "| bptt_L32 | rate 0.002 | 1 | 3.320 | 30 |",
        "| bptt_parallel_L32 | rate 0.008, visits 4 | 1 | 3.080 | 23 |",
        "| bptt_truncated_L128 | rate 0.004 | 1 | 3.480 | 22 |",
    ]
    assert page["speeds"] == "2.25 at L = 128"
    (curves,) = drawn["lengths"].values()
    assert curves["smt"] == [(32, 2.89), (128, 2.47)]
    assert curves["smt_unrolled"] == [(32, 2.32), (128, 2.28)]
    assert curves["bptt"] == [(32, 3.32), (128, pytest.approx(3.16))]
    assert curves["bptt_parallel"] == [(32, 3.08)]
    assert page["drawn"]


def test_text_is_not_drawn_where_bptt_is_not_at_all_lengths(tmp_path, drawn):
    made = method_results()
    del made["bptt_L32-rate0.002"]
    made["smt_L128"]["parallel"]["track"] = []
    page = results.of_method(read(tmp_path, made))
    assert (page["drawn"], drawn) == (False, {})
    assert page["speeds"] == "not reached at L = 128"


def test_images_have_a_row_for_every_method_and_rate_with_the_spread_of_its_seeds(tmp_path):
    ours = {"told_ahead": 2.6, "drift": 0.4, "before_finetune": None}
    made = {
        "smt-seed0": {"bits": 2.1, "teacher_bits": 1.9, "seconds": {"teacher": 400, "dmt": 200}},
        "smt-seed1": {"bits": 2.3, "teacher_bits": 1.7, "seconds": {"teacher": 400, "dmt": 190}},
        "smt_finetune-seed0": {"bits": 2.0, "teacher_bits": 1.8, "seconds": {"teacher": 590}},
        "smt_unrolled-seed0": {"bits": 1.5, "teacher_bits": 1.4, "seconds": {"teacher": 580}},
    }
    made = {name: {**ours, **result} for name, result in made.items()}
    made["smt_finetune-seed0"]["before_finetune"] = 2.2
    for rate, bits in {0.004: 2.5, 0.002: 2.7}.items():
        made[f"bptt-rate{rate}-seed0"] = {"bits": bits, "rate": rate, "seconds": {"bptt": 599}}
    page = results.of_pixels(read(tmp_path, made))
    found = rows(page["table"])
    rates = {"bptt, rate 0.004", "bptt, rate 0.002"}
    assert set(found) == {"smt", "smt finetune", "smt unrolled"} | rates
    assert found["smt"] == {
        "seeds": "2",
        "bits per pixel": "2.200 (2.100 to 2.300)",
        "teacher": "1.800 (1.700 to 1.900)",
        "told ahead": "2.600 (2.600 to 2.600)",
        "before BPTT": "-",
        "drift (NMSE)": "0.400 (0.400 to 0.400)",
    }
    finetuned = ["1", "2.000", "1.800", "2.600", "2.200", "0.400"]
    assert list(found["smt finetune"].values()) == finetuned
    assert list(found["bptt, rate 0.002"].values()) == ["1", "2.700", "-", "-", "-", "-"]
    assert [page["mean"](f"{name}_bits") for name in ("smt", "teacher", "bptt")] == [
        "2.200", "1.400", "2.500"
    ]  # fmt: skip
    assert (page["seeds"], page["scale"], page["seconds"]) == (2, 2, "600")
