"""How the trained stages are optimised: AdamW with warm-up and gradient clipping."""

import math
from dataclasses import dataclass
from typing import Literal

from smt_ray.config.checks import at_least, flag, require

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """What all trained stages have in common."""

    schedule: Schedule = "cosine"
    """Learning rate of `teacher` and `bptt` after the warm-up: `constant`, or `cosine` to zero. The
    later stages always go to zero by a cosine."""
    warmup_fraction: float = 0.01
    """Share of a stage's steps with a linear warm-up. Raise it if the loss jumps early."""
    weight_decay: float = 0.01
    """AdamW weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW decay of the gradient's mean."""
    beta2: float = 0.95
    """AdamW decay of the gradient's square."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters. Lower it if the loss jumps late."""
    precision: Precision = "float32"
    """Arithmetic of matrix products: `float32`, or `bfloat16`, which GPUs multiply faster; weights
    and moments stay fp32."""
    validate_every: int = 500
    """Steps between validations. The weights with the lowest validation loss are the result."""
    validation_sequences: int = 256
    """Sequences of one validation, in whole batches. More make the choice surer and take time."""
    skip_nonfinite: int = 0
    """Optimizer steps of a stage that may be left out because their loss or gradient was not
    finite; each costs a restart from the last checkpoint. One more ends the run."""

    def __post_init__(self) -> None:
        """Check every field."""
        at_least(1, "optimizer", self, "validate_every", "validation_sequences")
        at_least(0, "optimizer", self, "weight_decay", "warmup_fraction", "beta1", "beta2")
        at_least(0, "optimizer", self, "skip_nonfinite")
        require(self.clip_norm > 0, "optimizer.clip-norm", self.clip_norm, "must be > 0")
        for name in ("warmup_fraction", "beta1", "beta2"):
            value = getattr(self, name)
            require(value < 1, f"optimizer.{flag(name)}", value, "must be < 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """What each trained stage has of its own."""

    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 32
    """Sequences in one optimizer step, over all workers and accumulation."""
    learning_rate: float = 3e-4
    """Peak learning rate."""

    def check(self, prefix: str) -> None:
        """Check every field; `prefix` is the stage's name, known to the owner only."""
        at_least(1, prefix, self, "steps", "global_batch")
        rate, name = self.learning_rate, f"{prefix}.learning-rate"
        require(rate > 0, name, rate, "must be > 0")
        require(rate < math.inf, name, rate, "must be finite")  # no norm clips an infinite one


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(OptimizerConfig):
    """Everything about the optimisation of one stage, as the training loop needs it."""

    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 32
    """Sequences in one optimizer step, over all workers and accumulation."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    seed: int = 0
    """Seed of the initial weights, the data order and all sampling."""

    @property
    def validation_batches(self) -> int:
        """Global batches of one validation."""
        return max(1, self.validation_sequences // self.global_batch)
