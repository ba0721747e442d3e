"""Training for so many CPU-seconds: what it says where it cannot go on."""

import re

import pytest
import torch

from benchmarks.budget import train
from smt_ray.config import TrainConfig
from smt_ray.data.reader import Stream
from smt_ray.objectives.objective import Objective


class Exploding(Objective):
    """A loss that is infinite from its third step on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def counts(self, batch):
        return {}

    def forward(self, batch):
        factor = torch.where(batch["step"] < 2, 1.0, float("inf"))
        return {"loss": (self.weight * factor).sum()}


class Empty(Stream):
    """Batches that hold one input."""

    def batch(self, step):
        return {"inputs": torch.zeros(1, 1, dtype=torch.long)}


def test_a_gradient_that_is_not_finite_names_its_step_and_the_rate_to_lower():
    config = TrainConfig(learning_rate=0.25)
    told = re.escape("gradient not finite at step 2; lower the peak rate 0.25")
    with pytest.raises(FloatingPointError, match=told):
        train(Exploding(), config, Empty(), 60.0)
