"""The tables of tasks: which rate of BPTT counts, and which method of a row is the best."""

import pytest

from benchmarks import task_results


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    panels = {}
    monkeypatch.setattr(task_results, "draw", lambda _, found, *__, **___: panels.update(found))
    return panels


def cell(method, accuracy, *, bits=1.0, rate=0.0, seed=0):
    stage = {"seconds": 100.0, "steps": 10, "tokens": 1000}
    ours = ("teacher", "labels", "transition", "dmt")
    names = ours if method.startswith("smt") else ("bptt",)
    return {
        "task": "copy", "length": 32, "method": method, "seed": seed, "rate": rate,
        "seconds": 300.0, "accuracy": accuracy, "bits": bits, "accuracy_4L": 0.0,
        "solved_after": None, "used": 300.0, "tokens": 3000,
        "stages": dict.fromkeys(names, stage), "scores": {name: [(10.0, 0.5)] for name in names},
    }  # fmt: skip


def page(*cells):
    results = {f"{number}-seed{made['seed']}": made for number, made in enumerate(cells)}
    return task_results.of_tasks(results)


def glance(*cells):
    return page(*cells)["glance"].splitlines()[2]


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


def test_curves_are_of_the_rate_that_counts_and_of_the_first_seed_there_is(drawn):
    scores = {"smt": 0.7, "smt_unrolled": 0.8}
    ours = [cell(method, 0.5, seed=seed) for method in scores for seed in (2, 1)]
    for made in ours:
        end = scores[made["method"]] + made["seed"]
        made["scores"] = {"teacher": [(90.0, end)], "dmt": [(5.0, end)]}
    tried = {1e-4: (0.9, 1.0), 3e-3: (0.1, 0.9)}
    unrolled = [cell("bptt", 0.5, bits=bits, rate=rate) for rate, (bits, _) in tried.items()]
    for made in unrolled:
        made["scores"] = {"bptt": [(10.0, tried[made["rate"]][1])]}
    page(*ours, *unrolled)
    assert drawn == {
        "copy, L = 32, 300 s": {
            "bptt": [(10.0, 0.9)],
            "teacher": [(90.0, 1.8)],
            "smt": [(305.0, 1.7)],
            "smt_unrolled": [(305.0, 1.8)],
        }
    }


def test_at_equal_tokens_is_the_last_score_before_smt_had_read_as_many():
    unrolled = cell("bptt", 0.9, rate=1e-3)
    unrolled["scores"] = {"bptt": [(100.0, 0.2), (199.0, 0.3), (201.0, 0.4)]}  # 10 tokens a second
    row = page(cell("smt", 0.5), unrolled)["table"].splitlines()[2]
    assert row.endswith("| 0.300 |")
    slow = {**unrolled, "tokens": 1999, "used": 300.0}  # of the 2,000 that SMT has read
    row = page(cell("smt", 0.5), slow)["table"].splitlines()[2]
    assert row.endswith("| - |")
    grown = {**unrolled, "method": "bptt_curriculum"}
    row = page(cell("smt", 0.5), grown)["table"].splitlines()[2]
    assert row.endswith("| - |")


def test_what_bptt_at_the_end_of_smt_brings_is_told():
    tuned = {**cell("smt", 0.9), "method": "smt_finetune", "before_finetune": 0.4, "teacher": 0.7}
    made = page(tuned)["table"].splitlines()
    row = dict(zip(made[0].split(" | "), made[2].split(" | "), strict=True))
    assert (row["before BPTT"], row["accuracy"], row["teacher"]) == ("0.400", "0.900", "0.700")


def test_when_bptt_in_parallel_scores_as_smt_does_is_told_seed_by_seed():
    ours = [cell("smt_unrolled", 0.5, seed=seed) for seed in (0, 1, 2)]
    for made in ours:
        made["scores"]["dmt"] = [(10.0, 0.9), (100.0, 0.6)]
    others = [cell("bptt_parallel", 0.5, rate=8e-3, seed=seed) for seed in (1, 0)]
    for made, last in zip(others, (0.59, 0.6), strict=True):
        made["scores"]["bptt"] = [(50.0, 0.5), (90.0, last), (95.0, last)]
    assert page(*ours, *others)["saved"]("copy", 32) == {
        "reached": "90, never", "dmt": "100", "before": "200"
    }  # fmt: skip


def test_steps_of_seeds_are_compared_where_none_ended_early():
    cells = [cell("bptt", 0.5, rate=1e-3, seed=seed) for seed in range(3)]
    for made, steps, used in zip(cells, (10, 25, 90), (300.0, 301.0, 200.0), strict=True):
        made |= {"stages": {"bptt": {"steps": steps, "seconds": used}}, "used": used}
    found = page(*cells)
    assert (found["uneven"]("bptt"), found["uneven"]("bptt", "copy")) == ("2.50", "1.00")
    assert "| 42 (10 to 90) |" in found["table"]


@pytest.mark.parametrize(("task", "starred"), [("parity", True), ("copy", False)])
def test_a_star_is_at_smt_whose_dmt_goes_on_without_labels(task, starred):
    row = glance({**cell("smt_unrolled", 0.5), "task": task}, {**cell("smt", 0.5), "task": task})
    assert ("| 0.500 (1)\\* | - | 0.500 (1) |" in row) == starred
