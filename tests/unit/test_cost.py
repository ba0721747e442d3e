"""The cost model's arithmetic, and what a bad plan is answered with."""

from dataclasses import replace

import pytest

from smt_ray.config import RunConfig
from smt_ray.config.presets import PRESETS, preset
from smt_ray.studies.cost import Line, Stage, assumed, cost, fit_line, stages_of
from smt_ray.studies.flops import networks, sequence_flops
from smt_ray.studies.measurements import Point
from smt_ray.studies.scenario import Scenario, read_plan
from smt_ray.studies.tables import cost_table, terminal_table

RUN = preset("paper").update({"labels": {"fraction": 1.0}, "runtime": {"gang_ranks": 1}})
SCENARIO = Scenario(
    run=RUN,
    vocabulary=256,
    tokens=1e12,
    passes={"dmt": 2},
    workers=32,
    gangs=8,
    worker_price=3.0,
    rank_price=1.0,
)


def by_stage(scenario, stages):
    return {row["stage"]: row for row in cost(scenario, stages)}


def test_a_trillion_tokens_on_paper():
    reached = 2e14
    rows = by_stage(SCENARIO, assumed(reached))
    assert list(rows) == ["teacher", "labels", "transition", "dmt", "all"]
    model = RUN.model
    assert rows["labels"]["label_bytes"] == model.memory_tokens * model.width * 2 * 10**12
    flops = sequence_flops(RUN, 256)
    for stage, passes, processes in (
        ("teacher", 1, 32), ("labels", 1, 8), ("transition", 1, 32), ("dmt", 2, 32)
    ):  # fmt: skip
        expected = passes * 1e12 / RUN.data.sequence_length * flops[stage]
        assert rows[stage]["flops"] == pytest.approx(expected, rel=1e-6)
        # Validations are on top, once in `validate_every` steps.
        assert rows[stage]["seconds"] == pytest.approx(expected / processes / reached, rel=0.01)
    hours = rows["teacher"]["hours"]
    assert rows["teacher"]["dollars"] == pytest.approx(hours * 32 * 3)
    assert rows["labels"]["dollars"] == pytest.approx(rows["labels"]["hours"] * 8)
    for name in ("hours", "dollars", "label_bytes", "collective_bytes"):
        assert rows["all"][name] == pytest.approx(sum(rows[s][name] for s in list(rows)[:-1]))
    # Ring all-reduce of fp32 gradients: 2 (w - 1) / w of them a worker and step.
    parameters = networks(RUN, 256).parameters["teacher"]
    assert rows["teacher"]["collective_bytes"] == pytest.approx(
        rows["teacher"]["steps"] * 2 * 31 * parameters * 4
    )
    labels = rows["labels"]["label_bytes"]
    assert rows["transition"]["storage_bytes"] == pytest.approx(labels + 4e12, rel=1e-9)
    assert rows["dmt"]["storage_bytes"] == pytest.approx(2 * (labels + 4e12) / RUN.dmt.visits)
    for how, visits, fraction in (("full", 1, 0.02), ("parallel", 5, 0.5)):
        unrolled = {"bptt": {"steps": 1}, "finetune": {"steps": 1}}
        run = RUN.update(unrolled | {"unroll": {"mode": how, "visits": 5.0}})
        run = run.override("labels.fraction", fraction)
        others = by_stage(replace(SCENARIO, run=run), assumed(reached))
        for stage in unrolled:
            assert others[stage]["storage_bytes"] == pytest.approx(4e12 / visits)
        for name in ("label_bytes", "flops"):
            expected = fraction * rows["labels"][name]
            assert others["labels"][name] == pytest.approx(expected, rel=1e-6)
        expected = fraction * (labels + 4e12)
        assert others["transition"]["storage_bytes"] == pytest.approx(expected, rel=1e-6)


def test_a_trillion_tokens_fit_the_terminal():
    rows = cost(SCENARIO, assumed(2e14))
    lines = terminal_table("cost", cost_table(rows)).splitlines()
    assert max(map(len, lines)) <= 100
    # Nothing is folded: a line a row, and one that names all columns.
    assert sum("1e+12" in line for line in lines) == len(rows)
    assert sum(bool(line.strip()) for line in lines) == len(rows) + 3
    assert any("collectives" in line for line in lines)


def test_time_is_linear_in_tokens_and_startup_is_apart():
    stages = {name: replace(s, startup_s=60.0) for name, s in assumed(1e14).items()}
    small, large = (by_stage(replace(SCENARIO, tokens=n), stages) for n in (1e11, 3e11))
    for stage in ("teacher", "labels", "transition", "dmt"):
        assert large[stage]["seconds"] == pytest.approx(3 * small[stage]["seconds"], rel=1e-3)
        assert large[stage]["startup_s"] == small[stage]["startup_s"] == 60
        assert small[stage]["hours"] * 3600 == pytest.approx(small[stage]["seconds"] + 60)


def test_zero_3_gathers_the_weights_for_every_micro_batch():
    parameters = networks(RUN, 256).parameters["teacher"]
    each = 31 * parameters * 2  # bf16
    share = RUN.teacher.global_batch // 32
    for group, micros in ((2, share // 2), (8, 1)):
        run = RUN.update({"runtime": {"zero_stage": 3, "micro_batch": 1}})
        run = run.override("loss.group", group)
        row = by_stage(replace(SCENARIO, run=run), assumed(1e14))["teacher"]
        assert row["collective_bytes"] == pytest.approx(row["steps"] * each * (1 + 2 * micros))


def test_a_line_goes_through_what_was_measured():
    line = Line(0.2, 3e-11)
    steps = [(flops, line.seconds(flops)) for flops in (1e10, 2e10, 5e10)]
    found = fit_line(steps)
    assert (found.fixed_s, found.s_per_flop) == pytest.approx((0.2, 3e-11), rel=1e-6)
    alone = fit_line(steps[:1])
    assert alone.fixed_s == 0
    assert alone.seconds(2e10) == pytest.approx(2 * steps[0][1])
    assert fit_line([(1e10, 1.0), (2e10, 2.5)]).fixed_s == 0  # never below


POINT = Point(
    stage="teacher",
    scaling="base",
    count=1,
    processes=1,
    batch=8,
    per_s=1e3,
    step_s=1.0,
    step_flops=1e10,
    peak_flops_per_s=5e10,
    startup_s=20.0,
    tokens=1000,
    seconds=10.0,
    checkpoint_s=2.0,
    validation_s=0.5,
    validation_flops=4e9,
    parameters=1000,
)


def test_points_say_efficiency_startup_and_rates():
    weak = replace(POINT, scaling="weak", count=4, step_s=1.25)
    strong = replace(POINT, scaling="strong", count=4, step_s=0.4, step_flops=2.5e9)
    stage = stages_of([POINT, strong, weak])["teacher"]
    assert stage == Stage(Line(0.0, 1e-10), 0.8, 20.0, 0.5 / 4e9, 2.0, 1000)
    with pytest.raises(ValueError, match="stage labels was not measured"):
        cost(SCENARIO, {"teacher": stage})
    with pytest.raises(ValueError, match=r"^workers=4096: .* has a global-batch of 128 sequences"):
        cost(replace(SCENARIO, workers=4096), assumed(1e14))


def test_a_plan_is_read(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(
        "tokens: [1e9, 1.0e+12]\n"
        "preset: paper\n"
        "config: {model: {memory_tokens: 32}}\n"
        "passes: {dmt: 4}\n"
        "workers: 16\n"
        "prices: {h100: 3.0, spot: 1}\n"
        "worker: h100\n"
        "gang: spot\n"
        "flops-per-s: 1.0e+14\n"
    )
    plan = read_plan(str(file), RunConfig())
    assert [scenario.tokens for scenario in plan.scenarios] == [1e9, 1e12]
    scenario = plan.scenarios[0]
    assert (scenario.run.model.memory_tokens, scenario.run.model.width) == (32, 256)
    assert (scenario.worker_price, scenario.rank_price) == (3.0, 1.0)
    assert (scenario.workers, scenario.gangs, scenario.vocabulary) == (16, 1, 256)
    assert (plan.rates, plan.flops_per_s) == ((), 1e14)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_be_priced_on_the_source_of_the_study(name, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(f"{{tokens: 1e9, preset: {name}}}")
    (scenario,) = read_plan(str(file), RunConfig()).scenarios
    assert scenario.run.model == preset(name).model
    assert scenario.run.data.source == "stdlib"
    assert (scenario.workers, scenario.gangs) == (scenario.run.runtime.workers, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: 4", "must hold at least `tokens"),
        ("tokens: many", "tokens='many': must be a number > 0"),
        ("{tokens: 1, worker: h100}", "worker='h100': must be one of prices: none"),
        ("{tokens: 1, worker: a, prices: {b: 1}}", "worker='a': must be one of prices: b"),
        ("{tokens: 1, price: 3}", "price: unknown key; did you mean prices?"),
        ("{tokens: 1, passes: {teach: 1}}", "passes='teach': must be one of teacher, "),
        ("{tokens: 1, workers: 1.5}", "workers=1.5: must be a whole number"),
        ("{tokens: 1, efficiency: 1.5}", "efficiency=1.5: must be <= 1"),
        ("{tokens: 1, config: {model: {wide: 4}}}", "model.wide: unknown field; did you mean"),
        ("{tokens: 1, preset: huge}", "preset='huge': must be one of tiny, "),
        ("{", "cannot be read"),
    ],
)
def test_a_bad_plan_is_answered_in_one_line(text, message, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^cost={file}: ") as error:
        read_plan(str(file), RunConfig())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
