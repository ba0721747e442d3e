"""The named figures of benchmarks: made from results as they lie in files."""

import inspect

import pytest

from benchmarks import ablations, method, pixels
from benchmarks.pool import Result


def track(*points):
    return [{"seconds": at, "bits": bits, "drift": drift} for at, bits, drift in points]


def test_the_speedup_is_that_to_what_both_modes_reach_in_bits_and_drift():
    result = {
        "sequential": {"track": track((4, 3.0, 0.5), (8, 2.5, 0.4), (12, 2.0, 0.2))},
        "parallel": {"track": track((2, 3.0, 0.2), (3, 2.0, 0.3), (5, 2.1, 0.3))},
    }
    # The goal: 2.1 bits and a drift of 0.3. `parallel` is there after 3 s, `sequential` after 12.
    assert method.speedup(result) == pytest.approx(4)
    result["parallel"]["track"] = []
    assert method.speedup(result) is None


def test_a_point_that_is_good_in_one_figure_alone_does_not_count_for_the_speedup():
    early = track((2, 1.9, 0.9), (3, 2.9, 0.1), (6, 2.0, 0.2))
    result = {"sequential": {"track": track((3, 2.0, 0.2))}, "parallel": {"track": early}}
    assert method.speedup(result) == pytest.approx(0.5)


def test_of_bptts_settings_on_text_the_best_of_the_first_seed_counts_with_all_its_seeds():
    dmt = {"bits": 2.5, "drift": 0.1, "track": track((4, 2.5, 0.1))}
    results: dict[str, Result] = {
        "labels": {"causal": 90.0, "causal_R2": 60.0, "bidirectional": 2.0, "padded": 1.0},
        "encoder_causal": {"bits": 3.0},
        "encoder_bidirectional": {"bits": 4.0},
        "smt_L128": dict.fromkeys(("before_dmt", *method.MODES), dmt),
        "counted": {"order1": 3.3, "order2": 2.7},
        "smt_unrolled_L128": {"bits": 2.4},
        "bptt_L128-rate0.008": {"bits": 3.5},
        "bptt_L128-rate0.004": {"bits": 3.1},
        "bptt_L128-rate0.004-seed1": {"bits": 3.7},
        "smt_unrolled_L128-seed1": {"bits": 2.6},
    }
    found = method.figures(results)
    assert found["labels_causal_over_bidirectional"] == 45
    assert found["labels_causal_R2_over_bidirectional"] == 30
    assert found["labels_causal_over_padded"] == 90
    assert (found["bptt_bits_L128"], found["smt_unrolled_bits_L128"]) == pytest.approx((3.4, 2.5))
    further = method.again(results, {128: 1.0}, 1.0, seed=2)
    again = ("smt_L128", "smt_unrolled_L128", "bptt_L128-rate0.004")
    assert set(further) == {f"{name}-seed2" for name in again}
    given = [
        inspect.signature(job.func).bind_partial(*job.args, **job.keywords).arguments
        for job in further.values()
    ]
    assert {arguments["seed"] for arguments in given} == {2}
    assert (found["smt_bits_L128"], found["dmt_speedup_L128"]) == (2.5, 1)
    assert (found["order1_bits"], found["order2_bits"]) == (3.3, 2.7)
    assert (found["bits_before_dmt"], found["drift_parallel"]) == (2.5, 0.1)


def test_of_bptts_rates_on_images_the_first_seed_decides_and_all_seeds_count():
    results = {
        f"{name}-seed{seed}": {"bits": bits - seed, "teacher_bits": bits - 0.5}
        for name, bits in {"smt": 3.0, "smt_finetune": 2.5, "smt_unrolled": 2.0}.items()
        for seed in range(2)
    }
    for rate, by_seed in {2e-3: (2.4, 2.0), 4e-3: (2.3, 2.7)}.items():
        for seed, bits in enumerate(by_seed):
            results[f"bptt-rate{rate:g}-seed{seed}"] = {"bits": bits, "rate": rate}
    results["bptt_parallel-rate0.002-seed0"] = {"bits": 2.2, "rate": 2e-3}
    found = pixels.figures(results)
    assert (found["bptt_parallel_rate"], found["bptt_parallel_bits"]) == (2e-3, 2.2)
    assert (found["bptt_rate"], found["bptt_bits"]) == (4e-3, 2.5)
    assert (found["smt_unrolled_bits"], found["teacher_bits"]) == (1.5, 1.5)


def test_changes_of_dmt_are_taken_out_of_the_teachers_they_share():
    row = {"teacher_bits": 3.0, "bits": 3.5, "drift": 0.2}
    shared = {**row, "visits4": {"bits": 3.6, "drift": 0.3}}
    found = ablations.by_change(
        {"as-it-is-seed0": shared, "as-it-is-seed1": shared, "R2-seed0": row}
    )
    assert {name: len(seeds) for name, seeds in found.items()} == {
        "as-it-is": 2, "R2": 1, "visits4": 2
    }  # fmt: skip
