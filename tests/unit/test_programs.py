"""What the stages begin with and what they read."""

import pytest
import torch
from safetensors.torch import save_file

from smt_ray.config import DataConfig, DmtConfig, LossConfig, RunConfig
from smt_ray.data.reader import Reader
from smt_ray.data.storage import Location
from smt_ray.data.windows import Windows
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.teacher import Teacher
from smt_ray.train.programs import (
    BpttProgram,
    DmtProgram,
    StoredLabels,
    TeacherProgram,
    TransitionProgram,
)
from tests.samples import MODEL, VOCABULARY, random_weights, rows, write

L = 8


def config(mode="parallel"):
    dmt = DmtConfig(global_batch=2, mode=mode)
    loss = LossConfig(horizon=L, timesteps=2)
    run = RunConfig(data=DataConfig(sequence_length=L), model=MODEL, loss=loss, dmt=dmt)
    return run.update(
        {"finetune": {"steps": 7}, "bptt": {"steps": 9}, "unroll": {"mode": "truncated"}}
    )


def test_fine_tuning_begins_with_the_rnn_of_dmt(tmp_path):
    dmt = random_weights(Dmt(MODEL, DmtConfig(), VOCABULARY))
    save_file(dmt.state_dict(), tmp_path / "model.safetensors")
    place = Location.of(tmp_path)
    program = BpttProgram(config(), place, VOCABULARY, "finetune", place)
    objective = program.objective()
    assert isinstance(objective, Bptt)
    found, expected = objective.rnn.state_dict(), dmt.rnn.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert objective.how.mode == "truncated"
    assert program.train.steps == 7


def test_the_baseline_is_fresh_and_the_same_every_time(tmp_path):
    program = BpttProgram(config(), Location.of(tmp_path), VOCABULARY)
    one, other = (program.objective().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert program.train == config().stages()["bptt"]
    assert program.train.steps == 9


@pytest.mark.parametrize("mode", ["parallel", "sequential", "one_step"])
def test_only_parallel_dmt_keeps_windows(tmp_path, mode):
    place = Location.of(tmp_path)
    write(place / "train", rows(16, L, MODEL), MODEL)
    program = DmtProgram(config(mode), StoredLabels(place, {}), place, place, VOCABULARY)
    stream = program.stream(0, 1, None, 0)
    assert isinstance(stream, Windows if mode == "parallel" else Reader)
    assert (stream.probe() is not None) == (mode == "parallel")


def test_a_curriculum_comes_before_the_whole_sequences_which_alone_are_validated(tmp_path):
    place = Location.of(tmp_path)
    for split in ("train", "validation"):
        write(place / split, rows(16, L))
    run = config().update({"teacher": {"steps": 4, "global_batch": 2, "curriculum": 2}})
    program = TeacherProgram(run, place, VOCABULARY)
    objective, stream = program.objective(), program.stream(0, 1, None, 0)
    for step, length in enumerate([L // 2, L // 2, L, L]):
        batch = stream.batch(step)
        assert batch["inputs"].shape == (2, length)
        assert objective({**batch, "step": torch.tensor(step)})["loss"].isfinite()
    assert program.validation(0, 1).batch(0)["inputs"].shape == (2, L)


def test_the_rnns_cell_begins_as_the_teachers_or_as_its_own_from_fresh_weights(tmp_path):
    run, place = config(), Location.of(tmp_path)
    teacher = random_weights(Teacher(run.model, run.loss, VOCABULARY, 0))
    save_file(teacher.state_dict(), tmp_path / "model.safetensors")

    def cell(run):
        return (
            TransitionProgram(run, StoredLabels(place, {}), place, VOCABULARY)
            .objective()
            .state_dict()
        )

    warm, expected = cell(run), teacher.cell.state_dict()
    assert all(torch.equal(warm[f"cell.{name}"], expected[name]) for name in expected)
    fresh = cell(run.override("transition.cell", "gru"))
    assert {"cell.gru.weight_hh"} <= fresh.keys() != warm.keys()
    deeper = cell(run.override("transition.cell-depth", run.model.cell_depth + 1))
    assert deeper.keys() > warm.keys()
