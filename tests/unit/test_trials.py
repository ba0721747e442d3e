"""The trials of a sweep: what they share, in which order they run, how they are recorded."""

import pytest

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.report.ranking import Entry
from smt_ray.studies.space import draws, grid, nested, parse_space
from smt_ray.studies.trials import Planner, Records, distinct, in_turn

BASE = RunConfig().update(
    {"data": {"source": "task:parity", "sequence_length": 16}, "loss": {"horizon": 16}}
)


def plan(*space):
    planner = Planner("mine", lambda fields: BASE.update(nested(fields)))
    return planner.trials(grid(parse_space(space)))


def counts(*space):
    entries = [trial.entry for trial in plan(*space)]
    stages = ("tokens", "teacher", "labels", "transition", "dmt")
    return len(entries), *(len(distinct(entries, stage)) for stage in stages)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (["model.memory-tokens=4,8,16", "model.encoder-depth=2,4,8"], (9, 1, 9, 9, 9, 9)),
        (["transition.cell=transformer,gru", "dmt.visits=4,8"], (4, 1, 1, 1, 2, 4)),
        (["transition.cell-depth=1,2", "transition.learning-rate=1e-3,1e-2"],
         (4, 1, 1, 1, 4, 4)),
        (["model.cell=transformer,gru", "dmt.visits=4,8"], (4, 1, 2, 2, 2, 4)),
        (["labels.fraction=0.5,1.0", "transition.cell=mlp,gru"], (4, 1, 1, 2, 4, 4)),
        (["data.sequence-length=16,32", "dmt.visits=4,8"], (4, 2, 2, 2, 2, 4)),
        (["optimizer.clip-norm=1.0,2.0", "labels.fraction=0.5,1.0"], (4, 1, 2, 4, 4, 4)),
        (["loss.group=4,64"], (2, 1, 2, 2, 2, 2)),
        (["evaluation.sequences=8,16"], (2, 1, 1, 1, 1, 1)),
    ],
)  # fmt: skip
def test_trials_share_what_does_not_depend_on_the_swept_fields(space, expected):
    assert counts(*space) == expected


def test_trials_are_runs_of_their_own_names():
    trials = plan("transition.cell=mlp,gru")
    assert [trial.config.name for trial in trials] == ["mine-000", "mine-001"]
    assert [trial.config.rnn_model.cell for trial in trials] == ["mlp", "gru"]
    assert trials[1].entry.fields == {"transition.cell": "gru"}


def test_teachers_are_begun_before_what_shares_them():
    trials = plan("transition.cell=mlp,gru", "model.encoder-depth=1,2,3")
    order = in_turn(trials)
    assert [trial.id for trial in order] == ["000", "001", "002", "003", "004", "005"]
    trials = plan("model.encoder-depth=1,2", "transition.cell=mlp,gru,transformer")
    order = in_turn(trials)
    assert [trial.id for trial in order] == ["000", "003", "001", "004", "002", "005"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "model.heads=4,3",
            r"^space=\(model.heads=3\): model.heads=3: must divide model.width=64$",
        ),
        ("model.cell=gru,lstm", r"^space=\(model.cell=lstm\): model.cell='lstm': must be one .*$"),
        (
            "data.source=task:parity,task:nothing",
            r"^space=\(data.source=task:nothing\): data.so.*$",
        ),
        ("data.source=task:parity,none.txt", r"^space=\(data.source=none.txt\): data.source=.*$"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(space, message):
    with pytest.raises(ValueError, match=message):
        plan(space)


def test_more_draws_keep_the_trials_that_were_there():
    planner = Planner("mine", lambda fields: BASE.update(nested(fields)))
    space = parse_space(["teacher.learning-rate=log:1e-4..1e-2", "model.encoder-depth=1..3"])
    few, many = (planner.trials(draws(space, count, 0)) for count in (3, 6))
    assert many[:3] == few


def test_records_are_kept_by_number(tmp_path):
    records = Records(Location.of(tmp_path) / "trials")
    assert records.all() == []
    one = Entry(id="001", status="failed", fields={"dmt.visits": 4.0}, error="no")
    two = Entry(
        id="000", status="finished", fields={}, figures={"rnn_bits": 2.5, "bptt_bits": None}
    )
    for entry in (one, two):
        records.write(entry)
    assert records.all() == [two, one]
    assert records.read("001") == one
    records.clear()
    assert records.all() == []
