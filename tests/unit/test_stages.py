"""Which stages a run has, and what a change of its settings makes anew."""

import importlib
import json
import linecache
import sys
from dataclasses import asdict, field, make_dataclass, replace
from typing import Any

import pytest

from smt_ray.config import RunConfig, changed, leaves
from smt_ray.pipeline import stages as of_stages
from smt_ray.pipeline.artifacts import fingerprint
from smt_ray.pipeline.stages import VERSIONS, fingerprints, settings, upstream

PLAIN = ["tokens", "teacher", "labels", "transition", "dmt", "export", "evaluate"]
SOURCE = "0123"
"""The fingerprint of a source."""


def config(*unrolled):
    return RunConfig().update({stage: {"steps": 10} for stage in unrolled})


def same(run, other):
    """Return the stages whose artifacts two runs share."""
    marks, others = fingerprints(run, SOURCE), fingerprints(other, SOURCE)
    return {stage for stage in marks if marks[stage] == others.get(stage)}


def test_unrolled_stages_are_made_only_where_they_are_asked_for():
    assert list(upstream(config())) == PLAIN
    assert list(upstream(config("finetune"))) == [*PLAIN[:5], "finetune", *PLAIN[5:]]
    assert list(upstream(config("bptt"))) == [*PLAIN[:5], "bptt", *PLAIN[5:]]


@pytest.mark.parametrize("unrolled", [(), ("finetune",), ("bptt",), ("finetune", "bptt")])
def test_every_stage_is_made_from_earlier_ones_and_has_settings(unrolled):
    run = config(*unrolled)
    stages = upstream(run)
    done: set[str] = set()
    for stage, names in stages.items():
        assert set(names) <= done
        done.add(stage)
    assert done == set(settings(run, SOURCE))
    assert done <= set(VERSIONS)


def test_the_last_trained_rnn_is_exported_and_the_baseline_is_evaluated():
    assert upstream(config("bptt"))["export"][0] == "dmt"
    assert upstream(config("finetune", "bptt"))["export"][0] == "finetune"
    assert "bptt" in upstream(config("finetune", "bptt"))["evaluate"]
    assert "bptt" not in upstream(config("finetune"))["evaluate"]


def test_the_baseline_depends_on_tokens_shapes_and_its_own_settings_alone():
    run = config("bptt")
    assert upstream(run)["bptt"] == ("tokens",)
    own = settings(run, SOURCE)["bptt"]
    other = run.override("loss.dynamics", 0.5).override("dmt.visits", 3.0)
    assert settings(other, SOURCE)["bptt"] == own
    assert settings(run.override("unroll.mode", "truncated"), SOURCE)["bptt"] != own


def test_the_rnns_own_cell_leaves_teacher_and_labels_as_they_are():
    run = config("bptt")
    assert list(fingerprints(run, SOURCE)) == list(upstream(run))
    shared = {"tokens", "teacher", "labels"}
    assert same(run, run.override("transition.cell", "gru")) == shared
    assert same(run, run.override("transition.cell-depth", 2)) == shared
    named = run.override("transition.cell", run.model.cell)
    named = named.override("transition.cell-depth", run.model.cell_depth)
    assert same(run, named) == set(upstream(run))
    assert same(run, run.override("model.cell-depth", 2)) == {"tokens"}


def test_later_stages_know_the_tokens_by_what_they_hold():
    run = config("finetune", "bptt")
    marks, others = (fingerprints(run, source, "digest") for source in ("one", "two"))
    assert {stage for stage in marks if marks[stage] == others[stage]} == set(marks) - {"tokens"}
    again = fingerprints(run, "one", "another digest")
    assert {stage for stage in marks if marks[stage] == again[stage]} == {"tokens"}
    unknown = fingerprints(run, "one"), fingerprints(run, "two")
    assert not set(unknown[0].values()) & set(unknown[1].values())


SECTIONS = ("model", "loss", "labels", "teacher", "transition", "dmt", "unroll", "evaluation")


def later(section, value):
    """Return a section with one more field, which is 7 unless it is said."""
    more = make_dataclass(
        f"Later{type(section).__name__}",
        [("added", int, field(default=7))],
        bases=(type(section),),
        frozen=True,
        kw_only=True,
        slots=True,
    )
    own = {name: getattr(section, name) for name in asdict(section)}
    return more(**own, added=value)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_field_that_is_added_later_leaves_todays_artifacts_where_they_are(name):
    run = config("finetune", "bptt").update(
        {"model": {"width": 96}, "loss": {"dynamics": 0.5}, "labels": {"fraction": 0.5}}
    )
    run = run.update({"dmt": {"depth": 4}, "evaluation": {"sequences": 9}, "unroll": {"span": 8}})
    section = getattr(run, name)
    neutral = replace(run, **{name: later(section, 7)})
    assert "added" in asdict(getattr(neutral, name))
    assert changed(neutral) == changed(run)
    assert settings(neutral, SOURCE) == settings(run, SOURCE)
    assert same(run, neutral) == set(upstream(run))
    assert same(run, replace(run, **{name: later(section, 8)})) < set(upstream(run))


def test_what_a_manifest_says_makes_its_fingerprint_again():
    run = config("bptt").override("model.width", 96)
    marks, own = fingerprints(run, SOURCE, "digest"), settings(run, SOURCE)
    known = marks | {"tokens": "digest"}
    for stage, names in upstream(run).items():
        read = json.loads(json.dumps(own[stage]))
        inputs = [known[name] for name in names]
        assert fingerprint(stage, VERSIONS[stage], read, inputs) == marks[stage]


@pytest.mark.parametrize("stage", PLAIN)
def test_a_raised_version_makes_a_stage_and_all_below_it_anew(stage, monkeypatch):
    run = config()
    marks = fingerprints(run, SOURCE)
    monkeypatch.setitem(of_stages.VERSIONS, stage, VERSIONS[stage] + 1)
    others = fingerprints(run, SOURCE)
    below = {stage}
    for name, names in upstream(run).items():
        if below & {*names}:
            below.add(name)
    assert {name for name in marks if marks[name] != others[name]} == below


def test_the_text_of_a_users_cell_decides_what_is_made_with_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from smt_ray.model.cells import GruCell\n\n\nclass Mine(GruCell):\n    twice = {}\n"

    def written(value):
        (tmp_path / "a_users_cell.py").write_text(text.format(value))
        sys.modules.pop("a_users_cell", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        return (
            fingerprints(config("bptt").override("model.cell", "a_users_cell:Mine"), SOURCE),
            fingerprints(config("bptt").override("transition.cell", "a_users_cell:Mine"), SOURCE),
        )

    first, again, other = written("False"), written("False"), written("True")
    sys.modules.pop("a_users_cell", None)
    assert again == first
    for shared, marks, others in zip(
        ({"tokens"}, {"tokens", "teacher", "labels"}), first, other, strict=True
    ):
        assert {stage for stage in marks if marks[stage] == others[stage]} == shared


def test_the_group_that_is_compared_decides_the_teacher():
    run = RunConfig().update({"teacher": {"global_batch": 12}, "loss": {"group": 8}})
    four = run.override("loss.group", 4)
    assert (run.group, four.group) == (4, 4)
    assert same(run, four) == set(PLAIN)
    assert settings(run, SOURCE)["teacher"] == settings(four, SOURCE)["teacher"]
    two = run.override("loss.group", 2)
    assert same(run, two) == {"tokens"}
    shared = run.update({"runtime": {"workers": 4}, "transition": {"global_batch": 16}})
    other = two.override("transition.global-batch", 16)
    assert shared.group == 2
    assert same(shared, other) == set(PLAIN)


def test_where_and_how_fast_a_run_is_made_decides_nothing():
    run = config("finetune", "bptt")
    values = {
        "preset": "small", "name": "other", "storage": "/elsewhere", "runtime.device": "gpu",
        "runtime.workers": 8, "runtime.gang-ranks": 3, "runtime.zero-stage": 3,
        "runtime.wandb-project": "mine", "optimizer.skip-nonfinite": 2,
    }  # fmt: skip
    names = [name for name in leaves(run) if name.startswith("runtime.") or name in values]
    assert len(names) == 4 + len(leaves(run.runtime))
    for name in names:
        other = run.override(name, values[name] if name in values else leaves(run)[name] + 1)
        assert leaves(other)[name] != leaves(run)[name]
        assert fingerprints(other, SOURCE) == fingerprints(run, SOURCE), name


def test_every_other_field_decides_something():
    run = config("finetune", "bptt").override("dmt.unroll", True)
    words = {
        "model.encoder": "bidirectional", "model.cell": "gru", "transition.cell": "mlp",
        "loss.whiten-dynamics": "directions", "labels.dtype": "float32", "dmt.mode": "one_step",
        "unroll.mode": "parallel", "optimizer.schedule": "constant",
        "optimizer.precision": "bfloat16",
    }  # fmt: skip
    numbers = {
        "model.width": 96, "model.heads": 8, "loss.group": 8, "labels.fraction": 0.5,
        "transition.cell-depth": 2,
    }  # fmt: skip
    plain = (
        "runtime.", "data.", "labels.mode", "name", "preset", "storage", "optimizer.skip-nonfinite"
    )  # fmt: skip
    other: Any
    for name, value in leaves(run).items():
        if name.startswith(plain):
            continue
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, str):
            other = words[name]
        elif isinstance(value, int):
            other = numbers.get(name, value + 1)
        else:
            other = numbers.get(name, value / 2 if value else 0.25)
            other = 2.0 if name in {"dmt.visits", "unroll.visits"} else other
        assert same(run, run.override(name, other)) < set(upstream(run)), name
