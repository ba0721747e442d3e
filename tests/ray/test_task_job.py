"""The job for tasks, from stages of SMT that are there: BPTT of their RNN, and beside it."""

import math

import pytest
import torch
import yaml
from safetensors.torch import save

from jobs.solve_task import parse
from smt_ray import load_rnn
from smt_ray.data.storage import Location
from smt_ray.evaluation.held_out import HeldOut
from smt_ray.objectives.dmt import Dmt
from smt_ray.objectives.teacher import Teacher
from smt_ray.objectives.transition import Transition
from smt_ray.pipeline import job
from smt_ray.pipeline.artifacts import MANIFEST
from smt_ray.pipeline.run import Run
from smt_ray.report.table import entries
from smt_ray.tasks import TASKS
from smt_ray.tasks.compute import MODULUS
from smt_ray.train.metrics import read_metrics
from tests.samples import random_weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SMT, UNROLLED = ("teacher", "labels", "transition", "dmt"), ("finetune", "bptt")
TRAIN = ("steps=5", "global-batch=8", "learning-rate=1e-2")
WORDS = (
    *("--task=modular", "--length=8", "--name=whole", "--optimizer.validation-sequences=32"),
    *("--data.task.sequences=320", "--data.validation-fraction=0.1", "--model.width=8"),
    *("--model.heads=2", "--model.encoder-depth=1", "--loss.timesteps=2"),
    *("--runtime.device=cpu", "--runtime.workers=1"),
    *(f"--{stage}.{setting}" for stage in UNROLLED for setting in TRAIN),
)


def prepare(config):
    """Make tokens, and leave random weights as the results of SMT."""
    run = Run.of(config)
    run.stages().tokens()
    vocabulary = TASKS["modular"].vocabulary(config.data.task)
    networks = {
        "teacher": Teacher(config.model, config.loss, vocabulary, 0),
        "transition": Transition(config.rnn_model, vocabulary),
        "dmt": Dmt(config.rnn_model, config.dmt, vocabulary),
    }
    figures = {"steps": 0, "tokens_per_s": 1.0, "labels": 0, "labels_per_s": 1.0}
    for seed, stage in enumerate(SMT):
        place = run.locations()[stage].make_dir()
        (place / MANIFEST).write_json({"seconds": 0.0, "figures": figures})
        if stage in networks:
            weights = random_weights(networks[stage], seed).state_dict()
            (place / "model.safetensors").write_bytes(save(weights))


@torch.no_grad()
def accuracy(rnn, batch):
    asked = batch["targets"] != -100
    answers = rnn.logits(rnn.rollout(batch["inputs"])[asked]).argmax(1)
    return (answers == batch["targets"][asked]).double().mean().item()


def test_fine_tuning_begins_with_the_rnn_of_dmt_and_all_that_unrolls_is_reported(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(job, "configure_logging", lambda: None)  # it is for the whole process
    words = [*WORDS, f"--storage=file://{tmp_path}?secret_key=hush"]
    config = parse(words).run
    prepare(config)
    said = job.run_job(parse, words)

    artifacts, directory = Location.of(tmp_path / "artifacts"), Location.of(tmp_path / "whole")
    assert said.endswith(f"model:  {directory / 'rnn'}")
    names = (directory / "artifacts.json").read_json()
    assert list(names) == ["tokens", *SMT, *UNROLLED, "export", "evaluate"]
    made = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert made == set(names.values())

    summary = (directory / "summary.json").read_json()
    sequences = (artifacts / names["tokens"] / "manifest.json").read_json()["figures"]["sequences"]
    length = config.data.sequence_length
    assert summary["tokens_source"] == sequences["train"] * length
    for stage in UNROLLED:
        train = config.stages()[stage]
        assert summary[f"tokens_{stage}"] == train.steps * train.global_batch * length
    bits = {
        stage: [
            row["validation/loss"] / math.log(2)
            for row in read_metrics(artifacts / names[stage])
            if "validation/loss" in row
        ]
        for stage in UNROLLED
    }
    (before, after), (fresh, baseline) = bits["finetune"], bits["bptt"]
    assert summary["rnn_bits_before_finetune"] == pytest.approx(before, rel=1e-5)
    assert summary["rnn_bits"] == pytest.approx(after, rel=1e-5)
    assert summary["bptt_bits"] == pytest.approx(baseline, rel=1e-5)
    assert after < before
    assert baseline < fresh == pytest.approx(math.log2(MODULUS))
    (batch,) = HeldOut(config, artifacts / names["tokens"] / "validation").batches()
    assert summary["rnn_accuracy"] == accuracy(load_rnn(directory / "rnn"), batch)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"hush" in path.read_bytes()] == []
    saved = yaml.safe_load((directory / "config.yaml").read_text())
    assert saved["storage"] == f"file://{tmp_path}?secret_key=***"

    report = (directory / "report.html").read_text()
    written = {key: (label, value) for key, label, value in entries(summary)}
    for key in ("rnn_accuracy_before_finetune", "rnn_accuracy", "bptt_accuracy"):
        label, value = written[key]
        assert f'<td>{label}</td><td class="number">{value}</td>' in report
    for stage in UNROLLED:
        assert f"<td>{stage}</td>" in report
        assert f"<code>{names[stage]}</code>" in report
