"""Evaluation fits beside the weights: with a vocabulary of 128k, each part in a process of its own
is measured by the kernel."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from smt_ray.config import LossConfig, ModelConfig
from smt_ray.evaluation import budget
from smt_ray.evaluation.budget import memories_at_once, rows_at_once
from smt_ray.evaluation.gradients import supervised_gradients, unrolled_gradients
from smt_ray.evaluation.next_k import next_k
from smt_ray.evaluation.ngrams import NgramModel
from smt_ray.evaluation.scores import compare
from smt_ray.model.encoder import build_encoder
from smt_ray.model.rnn import RNN

ROOT = Path(__file__).parents[2]
VOCABULARY, L, LOSS = 131_072, 128, LossConfig(horizon=8)
MODEL = ModelConfig(width=64, memory_tokens=8, encoder_depth=2)
CPU = torch.device("cpu")
LIMIT = 1 << 30
PARTS = ("scores", "next_k", "gradients", "rollouts", "ngrams")


def tokens(count: int, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randint(vocabulary, (count, L + 1))


def batch(count: int, vocabulary: int = VOCABULARY) -> dict[str, torch.Tensor]:
    drawn = tokens(count, vocabulary)
    return {"inputs": drawn[:, :-1], "targets": drawn[:, 1:]}


def main(part: str) -> None:
    """Print by how many bytes a part raises the most that this process has held."""
    torch.set_num_threads(1)
    vocabulary = 256 if part == "rollouts" else VOCABULARY
    rnn, encoder = RNN(MODEL, vocabulary).eval(), build_encoder(MODEL, vocabulary).eval()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = held("VmRSS")
    if part in {"scores", "rollouts"}:
        batches = [batch(2 if part == "scores" else 128, vocabulary)]
        scores, _ = compare(encoder, {"teacher": rnn.readout}, {"rnn": rnn}, batches, CPU)
        assert scores["rnn"].bits > 0
    elif part == "next_k":
        with torch.inference_mode():
            inputs, targets = batch(1).values()
            next_k(encoder(inputs), rnn.readout, inputs, targets, LOSS.horizon)
    elif part == "gradients":
        inputs, targets = batch(1).values()
        unrolled_gradients(rnn, inputs, targets)
        memory = encoder(inputs).detach()
        supervised_gradients(memory, rnn.readout, rnn.cell, inputs, targets, LOSS)
    else:
        windows = (tokens(1 << 12).numpy() for _ in range(1000))
        model = NgramModel.fit(windows, VOCABULARY)
        assert np.isfinite(model.bits(tokens(256).numpy())[1])
    print(json.dumps(held("VmHWM") - before))  # noqa: T201


def held(name: str) -> int:
    """Return the bytes that the kernel gives for this process: VmRSS, or VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.mark.parametrize("part", PARTS)
def test_a_large_vocabulary_takes_less_than_a_gibibyte(part):
    command = [sys.executable, "-m", "tests.unit.test_budget", part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < LIMIT, part


def test_what_is_done_at_once_follows_the_budget_and_is_never_nothing(monkeypatch):
    small, large = rows_at_once(MODEL, L, CPU), rows_at_once(MODEL, 4 * L, CPU)
    assert small == 4 * large
    assert memories_at_once(80, 1536, 64 * VOCABULARY, CPU, saved_blocks=6) == 1
    monkeypatch.setattr(budget, "CPU_BYTES", 2 * budget.CPU_BYTES)
    assert rows_at_once(MODEL, L, CPU) == 2 * small
    monkeypatch.setattr(budget, "CPU_BYTES", 1)
    assert rows_at_once(MODEL, L, CPU) == 1


def test_n_grams_stop_when_there_are_enough(monkeypatch):
    monkeypatch.setattr("smt_ray.evaluation.ngrams.MOST", 1000)
    monkeypatch.setattr("smt_ray.evaluation.ngrams._BLOCK", 1000)
    drawn = []

    def windows():
        for _ in range(100):
            drawn.append(1)
            yield tokens(4).numpy()

    NgramModel.fit(windows(), VOCABULARY)
    assert len(drawn) < 10


@pytest.mark.gpu
def test_the_budget_of_a_gpu_is_a_part_of_what_is_free():
    device = torch.device("cuda")
    free = budget.budget(device)
    held = torch.empty(free // 2, dtype=torch.uint8, device=device)
    less = budget.budget(device)
    del held  # torch keeps it: it counts as free
    assert less < free
    assert budget.budget(device) > less


if __name__ == "__main__":
    main(sys.argv[1])
