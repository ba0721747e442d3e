"""How one stage is optimised."""

import math
from dataclasses import dataclass
from typing import Literal

from smt_ray.config.checks import at_least, flag, require

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How one stage is optimised: AdamW with warm-up and gradient clipping."""

    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 32
    """Sequences in one optimizer step, over all workers and accumulation."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """Learning rate after the warm-up: `constant`, or `cosine` to zero."""
    warmup_fraction: float = 0.01
    """Share of the steps with a linear warm-up."""
    weight_decay: float = 0.01
    """AdamW weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW decay of the gradient's mean."""
    beta2: float = 0.95
    """AdamW decay of the gradient's square."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters."""
    precision: Precision = "float32"
    """Arithmetic of matrix products: `float32` or `bfloat16` (weights and moments stay fp32)."""
    validate_every: int = 500
    """Steps between validations; the checkpoint with the lowest validation loss is the result."""
    validation_batches: int = 8
    """Global batches in one validation."""
    seed: int = 0
    """Seed of the initial weights, the data order and all sampling."""

    def check(self, prefix: str) -> None:
        """Check every field; `prefix` is the stage's dotted name, known to the owner only."""
        at_least(1, prefix, self, "steps", "global_batch", "validate_every", "validation_batches")
        at_least(0, prefix, self, "weight_decay", "warmup_fraction", "beta1", "beta2", "seed")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            require(value > 0, f"{prefix}.{flag(name)}", value, "must be > 0")
        finite = self.learning_rate < math.inf  # no norm is clipped by an infinite one
        require(finite, f"{prefix}.learning-rate", self.learning_rate, "must be finite")
        for name in ("warmup_fraction", "beta1", "beta2"):
            value = getattr(self, name)
            require(value < 1, f"{prefix}.{flag(name)}", value, "must be < 1")
