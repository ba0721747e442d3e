"""Points of a scaling study, measured by the stages' own code, once."""

import random

import pytest

from smt_ray.config import DataConfig, RunConfig, RuntimeConfig, TeacherConfig, TransitionConfig
from smt_ray.data.storage import Location
from smt_ray.studies.measurements import measurements, throughput_rows
from smt_ray.studies.throughput import Throughput
from tests.samples import MODEL

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

STEPS = 8
WANTED = {"labels-base-1", "transition-weak-2"}


def test_points_are_measured_once(tmp_path):
    letters = random.Random(0)
    for name in range(12):
        text = "".join(letters.choices("abcd ", k=4000))
        (tmp_path / f"{name}.txt").write_text(text)
    config = RunConfig(
        name="study",
        storage=str(tmp_path / "runs"),
        data=DataConfig(
            source=str(tmp_path / "*.txt"), sequence_length=16, validation_fraction=0.3
        ),
        model=MODEL,
        teacher=TeacherConfig(global_batch=4),
        transition=TransitionConfig(global_batch=4),
        runtime=RuntimeConfig(device="cpu", workers=1, gang_ranks=1, gang_batch=8),
    )
    found = [plan for plan in measurements(config, [1, 2], [1], STEPS) if plan.name in WANTED]
    assert {plan.name for plan in found} == WANTED
    directory = Location.of(tmp_path / "study")
    study = Throughput(config, directory, found, STEPS)
    points = {point.stage: point for point in study.points()}
    assert not (directory / "scratch").exists()

    labels, transition = points["labels"], points["transition"]
    assert (transition.batch, labels.batch) == (8, 8)
    for point in points.values():
        assert point.per_s > 0
        assert point.startup_s > 0
        assert 0 < point.step_flops / point.step_s < point.peak_flops_per_s
    assert transition.per_s == pytest.approx(transition.batch * 16 / transition.step_s)
    assert 0 < transition.data_s < transition.step_s
    assert transition.checkpoint_s > 0
    assert transition.validation_s > 0
    assert transition.collectives_s > 0

    made = {file.path: file.read_bytes() for file in (directory / "points").files()}
    assert len(made) == len(WANTED) + 1  # and the device's peak
    again = Throughput(config, directory, found, STEPS)
    assert {point.stage: point for point in again.points()} == points
    assert {file.path: file.read_bytes() for file in (directory / "points").files()} == made
    assert "stages" not in vars(again)  # no session, no shards: nothing was to be made
    assert [row["efficiency"] for row in throughput_rows([labels])] == [1]
