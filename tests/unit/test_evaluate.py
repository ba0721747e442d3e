"""The evaluation of whole runs of random networks, one of each kind of source; no Ray."""

import json
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from smt_ray.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    RunConfig,
    RuntimeConfig,
    TaskConfig,
)
from smt_ray.data import sources
from smt_ray.data.export import save_rnn
from smt_ray.data.manifest import MANIFEST, write_manifest
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.evaluation.evaluator import score_run
from smt_ray.evaluation.held_out import HeldOut
from smt_ray.evaluation.networks import load_networks
from smt_ray.model.rnn import RNN
from smt_ray.objectives.bptt import Bptt
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.objective import Objective
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from tests.samples import MODEL, random_weights

SOURCES = {"text": 8, "task:parity": 8, "task:retrieval": 8, "pixels:digits": 64}


def configured(source: str, length: int) -> RunConfig:
    return RunConfig(
        data=DataConfig(
            source=source,
            sequence_length=length,
            validation_fraction=0.2,
            task=TaskConfig(sequences=200),
        ),
        model=MODEL,
        loss=LossConfig(horizon=4),
        evaluation=EvaluationConfig(sequences=24, sample_length=9),
        runtime=RuntimeConfig(device="cpu"),
    )


def write_artifacts(config: RunConfig, root: Location) -> dict[str, Location]:
    """Write token shards of the source, and random weights of every stage."""
    data = config.data
    plan = plan_source(data)
    tokenizer = plan.tokenizer
    for split in sources.SPLITS:
        place = (root / "tokens" / split).make_dir()
        manifest: dict[str, Any] = {
            "kind": "tokens",
            "sequence_length": data.sequence_length,
            "vocabulary": tokenizer.vocabulary,
            "targets": data.kind != "text",
        }
        shards: dict[str, dict[str, int]] = {}
        for unit in plan.split(split):
            packer = sources.packer(unit, data, tokenizer)
            for table in packer.tables(sources.read(unit, data, tokenizer), 1024):
                name = f"{len(shards):03d}.parquet"
                pq.write_table(table, (place / name).path)
                first, size = table["sequence_id"][0].as_py(), (place / name).size()
                shards[name] = {"rows": len(table), "first_id": first, "bytes": size}
        if data.kind != "task":
            manifest["bytes"] = 0
        if data.kind == "pixels":
            images = sources.images_in(data)
            manifest["image"] = images.height, images.width
        write_manifest(place, manifest, shards)
    objectives: dict[str, Objective] = {
        "teacher": Teacher(MODEL, config.loss, tokenizer.vocabulary, 0),
        "transition": Transition(MODEL, tokenizer.vocabulary),
        "dmt": Dmt(MODEL, config.dmt, tokenizer.vocabulary),
        "finetune": Bptt(MODEL, config.unroll, tokenizer.vocabulary),
        "bptt": Bptt(MODEL, config.unroll, tokenizer.vocabulary),
    }
    for seed, (stage, objective) in enumerate(objectives.items()):
        place = (root / stage).make_dir()
        save_file(random_weights(objective, seed).state_dict(), place.path + "/model.safetensors")
    finetuned = objectives["finetune"]
    assert isinstance(finetuned, Bptt)
    save_rnn(finetuned.rnn, root / "export", tokenizer)
    return {stage: root / stage for stage in ("tokens", *objectives, "export")}


@pytest.fixture(scope="module", params=SOURCES)
def run(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    source = request.param
    if source == "text":
        random = np.random.default_rng(0)
        for name in "ab":
            (directory / f"{name}.txt").write_bytes(random.integers(97, 123, 2000, np.uint8))
        source = f"{directory}/*.txt"
    config = configured(source, SOURCES[request.param])
    places = write_artifacts(config, Location.of(directory / "artifacts"))
    return config, places, score_run(config, places, 1)


def test_every_part_is_there_for_its_kind(run):
    config, _, result = run
    kind, length = config.data.kind, config.data.sequence_length
    rnns = {"rnn_before_dmt", "rnn_before_finetune", "rnn", "bptt"}
    models = rnns | {"teacher", "teacher_before_dmt"}
    orders = {"order0", "order1", "order2"} if kind == "text" else set()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["unit"] == {"task": "accuracy", "pixels": "bits per pixel"}.get(
        kind, "bits per byte"
    )
    assert result["scores"].keys() == result["curves"].keys() == models | orders
    assert result["scores"] == result["accuracy" if kind == "task" else "bits"]
    assert all(len(curve) == length for curve in result["curves"].values())
    assert result["drift"].keys() == result["drift_curves"].keys() == rnns - {"bptt"}
    assert result["long_scores"].keys() == (set() if kind == "pixels" else rnns)
    assert all(len(curve) == 4 * length for curve in result["long_curves"].values())
    assert result["gradients"].keys() == {"teacher", "rnn", "bptt"}
    assert all(len(curve) == length for curve in result["gradients"].values())
    assert result["next_k"].keys() == {"teacher", "rnn"}
    assert all(len(curve) == config.loss.horizon for curve in result["next_k"].values())
    assert (result["geometry"] == {}) == (kind != "task")
    assert (result["sample"] == {}) == (kind != "text")
    assert (result["images"] == {}) == (kind != "pixels")


def test_the_rnn_that_is_scored_is_the_exported_one(run):
    config, places, result = run
    manifest = (places["tokens"] / "validation" / MANIFEST).read_json()
    networks = load_networks(config, places, manifest["vocabulary"], torch.device("cpu"))
    exported = RNN(MODEL, manifest["vocabulary"])
    exported.load_state_dict(networks.rnns["rnn"].state_dict())
    tokens = torch.randint(manifest["vocabulary"], (3, 6))
    with torch.inference_mode():
        memory = exported.rollout(tokens)
        others = {name: rnn.rollout(tokens) for name, rnn in networks.rnns.items()}
    assert [name for name in others if torch.equal(others[name], memory)] == ["rnn"]
    assert result["parameters_rnn"] == sum(p.numel() for p in exported.parameters())


def test_scores_and_curves_say_the_same(run):
    config, _, result = run
    for name, score in result["scores"].items():
        curve = [value for value in result["curves"][name] if value is not None]
        np.testing.assert_allclose(score, np.mean(curve), rtol=1e-6)
    if config.data.kind == "task":
        bound = math.log2(2 if config.data.source == "task:parity" else 17)
        assert all(bits < 9 * bound for bits in result["bits"].values())


@torch.no_grad()
def test_accuracy_is_the_share_of_right_answers(run):
    config, places, result = run
    held_out = HeldOut(config, places["tokens"] / "validation")
    (batch,) = held_out.batches()
    vocabulary = held_out.manifest["vocabulary"]
    networks = load_networks(config, places, vocabulary, torch.device("cpu"))
    memory = dict.fromkeys(networks.readouts, networks.encoder(batch["inputs"]))
    readouts = dict(networks.readouts)
    for name, rnn in networks.rnns.items():
        memory[name], readouts[name] = rnn.rollout(batch["inputs"]), rnn.readout
    asked = batch["targets"] != -100
    assert result["accuracy"].keys() == readouts.keys()
    for name, readout in readouts.items():
        answers = readout(memory[name][asked])[:, 0].argmax(1)
        right = int((answers == batch["targets"][asked]).sum())
        assert result["accuracy"][name] == right / int(asked.sum())


def test_only_positions_with_a_target_are_scored(run):
    config, _, result = run
    if config.data.source == "task:retrieval":
        curve = result["curves"]["rnn"]
        assert [value is None for value in curve] == [True] * 7 + [False]
        assert curve[-1] == result["scores"]["rnn"]
        assert result["long_curves"]["rnn"][-1] == result["long_scores"]["rnn"]
        assert max(result["geometry"]["rnn"]["state"]) > 1


def test_images_have_the_shape_of_the_source(run):
    config, _, result = run
    if config.data.kind == "pixels":
        assert np.array(result["images"]["samples"]).shape == (16, 8, 8)
        assert np.array(result["images"]["truth"]).shape == (8, 8, 8)
        assert result["images"]["levels"] == 17
