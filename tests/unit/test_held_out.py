"""The sequences that a run is scored on stand for the whole held-out part."""

from smt_ray.config import DataConfig, EvaluationConfig, LossConfig, RunConfig
from smt_ray.data.storage import Location
from smt_ray.evaluation.held_out import HeldOut
from tests.samples import rows, write


def test_they_come_from_all_of_it(tmp_path):
    directory = Location.of(tmp_path / "validation")
    write(directory, rows(640, 6), files=2, group=32)
    config = RunConfig(
        data=DataConfig(sequence_length=6),
        loss=LossConfig(horizon=4),
        evaluation=EvaluationConfig(sequences=64, sample_length=8),
    )
    (batch,) = HeldOut(config, directory).batches()
    (again,) = HeldOut(config, directory).batches()
    assert batch["sequence_id"].equal(again["sequence_id"])
    groups = {row // 32 for row in batch["sequence_id"].tolist()}
    assert len(groups) > 15  # of 20
