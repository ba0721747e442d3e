"""Labels that are streamed: the same batches as stored ones, in the same order, from any step."""

import time
from contextlib import closing

import numpy as np
import pytest
import ray
import torch
from ray.data import DataContext
from safetensors.torch import save_file

from smt_ray.config import DataConfig, LabelConfig, RunConfig, RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.labels import factory as labels
from smt_ray.labels.labeller import started
from smt_ray.labels.stream import ROOM, StreamedLabels
from smt_ray.model.encoder import build_encoder
from smt_ray.train.programs import DmtProgram, StoredLabels
from tests.samples import MODEL, VOCABULARY, random_weights, rows, write

pytestmark = pytest.mark.ray

LENGTH, ROWS, BATCH = 16, {"train": 150, "validation": 40}, 8


def config(dtype="bfloat16"):
    return RunConfig(
        data=DataConfig(sequence_length=LENGTH),
        model=MODEL,
        labels=LabelConfig(dtype=dtype),
        runtime=RuntimeConfig(device="cpu", gang_ranks=1, gang_batch=20),
    ).update(
        {
            "transition": {"global_batch": BATCH},
            "dmt": {"global_batch": BATCH, "visits": 3.0, "depth": 2},
        }
    )


@pytest.fixture(scope="module", params=["bfloat16", "int8"])
def both(request, ray_session, tmp_path_factory):
    """Stored and streamed labels of the same tokens and teacher, and the gangs of the latter."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    run, place = config(request.param), Location.of(tmp_path)
    for split, count in ROWS.items():
        write(place / "tokens" / split, rows(count, LENGTH), files=3, group=32)
    encoder = random_weights(build_encoder(MODEL, VOCABULARY))
    (tmp_path / "teacher").mkdir()
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    save_file(weights, tmp_path / "teacher" / "model.safetensors")
    inputs = place / "tokens", place / "teacher"
    labels.write_labels(run, *inputs, "teacher0", VOCABULARY, place / "labels")
    spec = labels.encoder_spec(run, place / "teacher", VOCABULARY)
    with started("run", spec, run.runtime, 0) as gangs:
        streamed = StreamedLabels(run, place / "tokens", "teacher0", gangs)
        yield run, StoredLabels(place / "labels", {}), streamed


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_streamed_batches_are_the_stored_ones_in_the_same_order(both, monkeypatch):
    run, stored, streamed = both
    # Ray Data cuts larger blocks: a batch of large labels must stay one.
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2000)
    train = run.stages()["transition"]
    for rank in range(2):
        one, other = (source.rows("train", train, rank, 2) for source in (stored, streamed))
        assert np.array_equal(one.columns, other.columns)
        with closing(other):
            for step in (*range(6), *range(40, 44), 5):  # on, past an epoch, and from anywhere
                assert equal(one.batch(step), other.batch(step))
    one, other = (source.rows("validation", train, 0, 1) for source in (stored, streamed))
    for step in (0, 1, 0, 1):
        assert equal(one.batch(step), other.batch(step))
    made = ray.get(streamed.gangs.meter.labels.remote())
    other.batch(0)
    assert ray.get(streamed.gangs.meter.labels.remote()) == made, "encoded once"


def test_windows_of_a_stream_are_those_of_a_store(both):
    run, *sources = both
    place = Location.of("nowhere")
    programs = [DmtProgram(run, source, place, place, VOCABULARY) for source in sources]
    saved, start = None, 0
    for stop in (12, 30):
        streams = [program.stream(0, 1, saved, start) for program in programs]
        for step in range(start, stop):
            batches = [stream.batch(step) for stream in streams]
            assert equal(*batches)
            for stream, batch in zip(streams, batches, strict=True):
                stream.carry(step, batch["state"] * 0.5)
        saved, start = streams[1].state(), stop
        streams[1].close()


def test_gangs_wait_for_a_slow_worker(both):
    run, _, streamed = both
    before = ray.get(streamed.gangs.meter.labels.remote())
    reading = streamed.rows("train", run.stages()["transition"], 0, 1)
    reading.batch(0)
    made: list[int] = []
    for _ in range(100):  # until nothing more is made
        time.sleep(0.5)
        made.append(ray.get(streamed.gangs.meter.labels.remote()))
        if len(made) > 10 and made[-1] == made[-10]:
            break
    assert made[-1] == made[-10]
    ahead = made[-1] - before
    assert ahead <= LENGTH * 20 * ROOM, "gangs have run far ahead of a worker that asks no more"
    for step in range(1, 2 * ROOM * 20 // BATCH):
        reading.batch(step)
    assert ray.get(streamed.gangs.meter.labels.remote()) > made[-1]
    reading.close()
