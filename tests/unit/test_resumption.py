"""What a training goes on from: whole checkpoints alone, in a record that Ray Train reads."""

import itertools
import json
import os
import shutil

import pytest
import ray
import torch
from safetensors.torch import save_file

from smt_ray.data.storage import Location
from smt_ray.train.resumption import RECORD, last_whole

LOSSES = {0: 3.0, 10: 1.0, 20: 2.0}


@pytest.fixture
def place(tmp_path):
    """Three checkpoints of two ranks; the first rank keeps a state of its stream."""
    for step, loss in LOSSES.items():
        directory = tmp_path / f"step-{step:09d}"
        directory.mkdir()
        for rank in range(2):
            save_file({"weight/a": torch.ones(4)}, directory / f"weights-{rank:05d}.safetensors")
        save_file({"taken": torch.ones(1)}, directory / "stream-00000.safetensors")
        state = {"format": 2, "step": step, "loss": loss, "world": 2}
        (directory / "state.json").write_text(json.dumps(state))
    return tmp_path


def steps(results):
    return [result["metrics"]["step"] for result in results]


def test_the_record_has_the_latest_checkpoint_and_all_from_worst_to_best(place):
    assert last_whole(Location.of(place), "dmt") == 20
    record = json.loads((place / RECORD).read_text())
    assert record["ray_version"] == ray.__version__
    assert record["latest_checkpoint_result"]["checkpoint_dir_name"] == "step-000000020"
    assert steps(record["checkpoint_results"]) == [0, 20, 10]
    assert record["checkpoint_report_indices"] == [0, 2, 1]


def cut(file):
    os.truncate(file, file.stat().st_size - 1)


def empty(file):
    file.write_bytes(b"")


def flip_header(file):
    content = file.read_bytes()
    file.write_bytes(content[:8] + b"?" + content[9:])


def flip_length(file):
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


TENSORS = ("weights-00000.safetensors", "weights-00001.safetensors", "stream-00000.safetensors")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *itertools.product((*TENSORS, "state.json"), (cut, empty, flip_header)),
        *itertools.product(TENSORS, (flip_length,)),
        *itertools.product((*TENSORS[:2], "state.json"), (os.remove,)),  # few streams have a state
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(place, name, harm, caplog):
    file = place / "step-000000020" / name
    harm(file)
    assert last_whole(Location.of(place), "dmt") == 10
    (line,) = caplog.messages
    assert line.startswith(f"dmt: skipped an unfinished or damaged checkpoint: {file}: ")
    assert not file.parent.exists()
    assert steps(json.loads((place / RECORD).read_text())["checkpoint_results"]) == [0, 10]


@pytest.mark.parametrize("content", ["", "{", json.dumps({"ray_version": "0.1"})])
def test_a_record_that_ray_train_would_refuse_is_made_anew(place, content):
    (place / RECORD).write_text(content)
    assert last_whole(Location.of(place), "dmt") == 20
    assert json.loads((place / RECORD).read_text())["ray_version"] == ray.__version__


def test_without_a_checkpoint_there_is_no_record_and_the_first_step_is_next(place):
    last_whole(Location.of(place), "dmt")
    for directory in place.glob("step-*"):
        shutil.rmtree(directory)
    assert last_whole(Location.of(place), "dmt") == 0
    assert list(place.iterdir()) == []
    assert last_whole(Location.of(place / "none"), "dmt") == 0


def test_a_storage_that_does_not_answer_costs_no_checkpoint(place):
    file = place / "step-000000020" / "state.json"
    file.unlink()
    file.symlink_to(file.name)  # reading it fails, though the name is there
    with pytest.raises(OSError, match="symbolic links") as caught:
        last_whole(Location.of(place), "dmt")
    assert not isinstance(caught.value, FileNotFoundError)
    assert file.parent.exists()


def test_a_state_of_the_stream_that_was_not_uploaded_is_missed(place):
    directory = place / "step-000000020"
    state = json.loads((directory / "state.json").read_text())
    (directory / "state.json").write_text(json.dumps({**state, "stream": True}))
    shutil.copy(directory / "stream-00000.safetensors", directory / "stream-00001.safetensors")
    assert last_whole(Location.of(place), "dmt") == 20
    (directory / "stream-00001.safetensors").unlink()
    assert last_whole(Location.of(place), "dmt") == 10
