"""A scaling study without a cluster: what it measures, what it makes of it, and its page."""

from dataclasses import replace

import pytest

from jobs.scaling_study import described, parse
from smt_ray.cluster.resources import resolved
from smt_ray.data.storage import Location
from smt_ray.labels.meter import label_rate
from smt_ray.pipeline.recipes import on_text
from smt_ray.report.study_page import Study, write_study
from smt_ray.studies.chapters import Result, chapters
from smt_ray.studies.measurements import (
    Point,
    measurements,
    medians,
    throughput_rows,
    training_times,
)
from smt_ray.studies.quality import compression_rows, curves
from smt_ray.studies.scenario import Plan, Scenario
from smt_ray.studies.space import Choice
from smt_ray.studies.study import cost_rows, read_points, scaling_study
from smt_ray.studies.tables import terminal_table, throughput_table
from smt_ray.train.trace import covered

TINY = on_text("tiny")
HERE = resolved(TINY, {"CPU": 2})


def test_measurements_scale_weakly_and_strongly():
    found = {one.name: one for one in measurements(TINY, [1, 2, 4], [1, 2], steps=16, repeats=2)}
    assert len(found) == 2 * (3 * 5 + 2)
    assert list(found)[:6] == [
        "teacher-base-1",
        "teacher-weak-2",
        "teacher-strong-2",
        "teacher-weak-4",
        "teacher-strong-4",
        "teacher-base-1-again1",
    ]
    weak, strong = found["teacher-weak-4"].config, found["teacher-strong-4"].config
    assert weak.teacher.global_batch == 4 * TINY.teacher.global_batch
    assert strong.teacher.global_batch == TINY.teacher.global_batch
    assert {weak.runtime.workers, strong.runtime.workers} == {4}
    assert weak.teacher.steps == weak.optimizer.validate_every == 16
    assert weak.stages()["teacher"].validation_batches == 1
    assert weak.runtime.log_every == 2
    assert found["labels-weak-2"].config.runtime.gangs == 2
    with pytest.raises(ValueError, match=r"^runtime\.workers=9: teacher\.global-batch=8"):
        measurements(TINY, [1, 9], [1], steps=16)


def test_times_are_those_of_the_steady_state():
    intervals = [9.0, 5.0, 1.0, 1.2, 1.1, 1.0, 1.4, 7.0]  # warm-up, steady, traced
    rows = [{"step": n, "time/step_s": s, "time/data_s": s / 10} for n, s in enumerate(intervals)]
    rows[-1]["time/collectives_s"] = 0.3
    rows += [{"step": 0, "time/checkpoint_s": 4.0}, {"step": 8, "time/checkpoint_s": 2.0}]
    rows += [{"step": 0, "time/validation_s": 3.0}, {"step": 8, "time/validation_s": 1.0}]
    assert training_times(rows) == pytest.approx(
        {
            "step_s": 1.1,
            "data_s": 0.11,
            "mean_s": 1.14,
            "collectives_s": 0.3,
            "checkpoint_s": 2.0,
            "validation_s": 1.0,
            "rest_s": 10.0,
        }
    )


def point(scaling, count, per_s, **fields):
    values = {
        "stage": "teacher",
        "processes": count,
        "batch": 8,
        "step_s": 0.5,
        "step_flops": 1e10,
        "peak_flops_per_s": 5e10,
        "startup_s": 10.0,
        "tokens": 10_000,
        "seconds": 20.0,
        "data_s": 0.05,
        "collectives_s": 0.1,
        "checkpoint_s": 5.0,
        "checkpoint_every": 100,
        "validation_s": 0.1,
        "validation_flops": 3e9,
        "parameters": 1000,
    }
    return Point(scaling=scaling, count=count, per_s=per_s, **values | fields)


BASE = point("base", 1, 100.0)
LABELS = replace(point("base", 1, 50.0), stage="labels", validation_flops=0.0)


def test_rows_say_efficiency_utilisation_and_shares():
    points = [BASE, point("weak", 2, 180.0), point("strong", 2, 150.0), LABELS]
    base, weak, strong, labels = throughput_rows(points)
    assert [row["efficiency"] for row in (base, weak, strong)] == pytest.approx([1, 0.9, 0.75])
    assert base["mfu"] == pytest.approx(1e10 / 0.5 / 5e10)
    whole = 0.5 + 5 / 100
    assert base["share_data"] == pytest.approx(0.05 / whole)
    assert base["share_collectives"] == pytest.approx(0.1 / whole)
    assert base["share_checkpoint"] == pytest.approx(0.05 / whole)
    assert sum(value for name, value in base.items() if name.startswith("share_")) == 1
    assert labels["share_compute"] is None
    text = terminal_table("study", throughput_table([base, labels]))
    assert "1 gang " in text
    again = [replace(BASE, per_s=rate) for rate in (90.0, 300.0, 110.0)]
    assert [found.per_s for found in medians([*again, LABELS])] == [110.0, 50.0]


def test_the_throughput_of_a_cluster_fits_the_terminal():
    names = ("teacher", "transition", "labels")
    points = [replace(point("base", 1, 9e5), stage=name) for name in names]
    points += [replace(point("strong", 128, 1.6e7), stage=name) for name in names]
    lines = terminal_table("study", throughput_table(throughput_rows(points))).splitlines()
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if line.strip()]) == 3 + len(points)  # no line is broken
    assert any(" 128 gangs " in line and " 16 M " in line for line in lines)


def test_labels_are_counted_while_all_gangs_are_at_work():
    begun = {"a": 0.0, "b": 10.0}
    early = [(4.0, 10), (6.0, 10), (20.0, 10), (22.0, 10), (24.0, 10)]
    late = [(19.0, 10), (21.0, 10), (23.0, 10), (40.0, 10)]
    # Both from 19 to 24: 20 labels in 4 s and 20 in 4 s.
    assert label_rate(begun, [early, late]) == pytest.approx(10)
    assert label_rate(begun, [early[:1], late[:1]]) == pytest.approx(20 / 19)
    assert label_rate({}, []) == 0


def test_overlapping_intervals_count_once():
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 2)]) == 4
    assert covered([]) == 0


def test_a_study_of_costs_alone_writes_its_page(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "{tokens: [1.0e+9, 1.0e+12], preset: paper, flops_per_s: 2.0e+14, prices: {a: 2}, "
        "config: {labels: {fraction: 1.0}}}"
    )
    words = ["--no-throughput", "--cost", str(plan), "--storage", str(tmp_path), "--name", "costs"]
    _, design = parse(words)
    assert described(design) == "0 measurements, 0 runs"
    result = scaling_study(design)
    assert {file.name for file in result.directory.files()} == {
        "report.html", "cost.csv", "cost.json", "cost.png"
    }  # fmt: skip
    page = (result.directory / "report.html").read_text()
    assert "What would it cost?" in page
    assert "8.19 PB" in page  # 16 * 256 * 2 bytes * 1e12
    lines = (result.directory / "cost.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 5
    again = scaling_study(design)
    assert again.cost == result.cost
    (tmp_path / "costs" / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"^name=costs: is that of a run or a sweep"):
        scaling_study(design)


def test_a_page_has_a_section_for_each_question(tmp_path):
    axis = Choice("model.width", (16, 32, 64, 128))
    runs = [
        {
            "run": f"study.{width}",
            "fields": {"model.width": width},
            "parameters": width**2,
            "parameters_teacher": 2 * width**2,
            "context": 128,
            "memory": 4 * width,
            "tokens": 1e6,
            "flops": 1e6 * width**2,
            "bptt_flops": 2e6 * width**2,
            "unit": "bits per byte",
            "teacher_bits": 4 * width**-0.2,
            "rnn_bits": 5 * width**-0.2,
            "bptt_bits": 6 * width**-0.2,
        }
        for width in axis.values
    ]
    result = Result(
        Location.of(tmp_path),
        throughput_rows([BASE, point("weak", 2, 180.0), point("strong", 2, 150.0), LABELS]),
        runs,
        curves(runs, [axis], TINY),
        compression_rows(runs),
        cost([Scenario(run=HERE, vocabulary=256, tokens=1e9, passes={}, workers=2, gangs=1)]),
    )
    sections = chapters(result)
    assert [section.title for section in sections] == [
        "How does it scale in workers?",
        "How does it scale in size?",
        "How small may the memory be?",
        "What would it cost?",
    ]
    pictures = {file.name for file in Location.of(tmp_path).files(".png")}
    assert pictures == {
        "efficiency.png", "shares.png", "quality-0.png", "quality-1.png", "compression.png"
    }  # fmt: skip
    laws = sections[1].tables[0]
    assert laws.rows[1][:5] == ["rnn_bits", "parameters", "model.width", "4", "b x^-c"]
    assert laws.rows[1][-1] == "0.1 (0.1 to 0.1)"
    write_study(Location.of(tmp_path), Study(title="study", sections=sections))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(pictures)


def cost(scenarios):
    plan = Plan(scenarios=tuple(scenarios), rates=(), flops_per_s=1e14)
    return cost_rows(plan, [])


def test_measurements_of_other_studies_are_read(tmp_path):
    file = tmp_path / "throughput.json"
    file.write_text("[{}]")
    with pytest.raises(ValueError, match=rf"^rates={file}: no throughput.json of a study"):
        read_points(str(file))
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"{{tokens: 1.0e+9, rates: [{file}]}}")
    _, design = parse(["--no-throughput", "--cost", str(plan)])
    assert design.costs is not None
    with pytest.raises(ValueError, match=r"^rates="):
        cost_rows(design.costs, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "1,x"], "workers=1,x: must be whole numbers > 0 with commas, as 1,2,4"),
        (["--gangs", "0"], "gangs=0: must be whole numbers > 0 with commas, as 1,2,4"),
        (["--steps", "12"], "steps=12: must be a multiple of 8"),
        (["--repeats", "0"], "repeats=0: must be >= 1"),
        (["--targets", "a"], "targets=a: must be numbers with commas, as 2.5,2.8"),
        (["--no-throughput"], "throughput=False: leaves nothing to do; give --quality or --cost"),
        (["--quality", "model.width=8..64"], "quality=model.width=8..64: must be a list of values"),
        (["--quality", "model.wide=8"], "quality=model.wide: unknown field; did you mean"),
        (["--quality", "model.width=6"], "quality=model.width=6: model.heads=2: "),
        (["--cost", "none.yaml"], "cost=none.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_answered_in_one_line(words, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        parse(words)
    assert str(error.value).startswith(message)


def test_bptt_gets_as_many_tokens_as_the_teacher():
    _, design = parse(["--bptt", "--quality", "model.width=32,64", "--name", "wide"])
    bptt, teacher = design.run.bptt, design.run.teacher
    assert (bptt.steps, bptt.global_batch) == (teacher.steps, teacher.global_batch)
    assert [trial.config.name for trial in design.trials] == [
        "wide.model.width-32",
        "wide.model.width-64",
    ]
    assert parse([])[1].run.name == "tiny-scaling"
