"""Which stages a run has, and what a change of its settings makes anew."""

import pytest

from smt_ray.config import RunConfig
from smt_ray.pipeline.stages import fingerprints, settings, upstream

PLAIN = ["tokens", "teacher", "labels", "transition", "dmt", "export", "evaluate"]


def config(*enabled):
    return RunConfig().update({stage: {"enabled": True} for stage in enabled})


def test_unrolled_stages_are_made_only_where_they_are_asked_for():
    assert list(upstream(config())) == PLAIN
    assert list(upstream(config("finetune"))) == [*PLAIN[:5], "finetune", *PLAIN[5:]]
    assert list(upstream(config("bptt"))) == [*PLAIN[:5], "bptt", *PLAIN[5:]]


@pytest.mark.parametrize("enabled", [(), ("finetune",), ("bptt",), ("finetune", "bptt")])
def test_every_stage_is_made_from_earlier_ones_and_has_settings(enabled):
    run = config(*enabled)
    stages = upstream(run)
    done: set[str] = set()
    for stage, names in stages.items():
        assert set(names) <= done
        done.add(stage)
    assert done <= set(settings(run))


def test_the_last_trained_rnn_is_exported_and_the_baseline_is_evaluated():
    assert upstream(config("bptt"))["export"][0] == "dmt"
    assert upstream(config("finetune", "bptt"))["export"][0] == "finetune"
    assert "bptt" in upstream(config("finetune", "bptt"))["evaluate"]
    assert "bptt" not in upstream(config("finetune"))["evaluate"]


def test_the_baseline_depends_on_tokens_shapes_and_its_own_settings_alone():
    run = config("bptt")
    assert upstream(run)["bptt"] == ("tokens",)
    other = run.override("loss.dynamics", 0.5).override("dmt.visits", 3.0)
    assert settings(other)["bptt"] == settings(run)["bptt"]
    assert settings(run.override("bptt.mode", "truncated"))["bptt"] != settings(run)["bptt"]


def test_the_rnns_own_cell_leaves_teacher_and_labels_as_they_are():
    run = config("bptt")
    marks = fingerprints(run)
    assert list(marks) == list(upstream(run))
    other = fingerprints(run.override("transition.cell", "gru"))
    same = {stage for stage in marks if marks[stage] == other[stage]}
    assert same == {"tokens", "teacher", "labels"}
    deeper = fingerprints(run.override("transition.cell-depth", 2))
    assert {stage for stage in marks if marks[stage] == deeper[stage]} == same
    named = run.override("transition.cell", run.model.cell)
    named = named.override("transition.cell-depth", run.model.cell_depth)
    assert fingerprints(named) == marks
    own = fingerprints(run.override("model.cell-depth", 2))
    assert {stage for stage in marks if marks[stage] == own[stage]} == {"tokens"}
