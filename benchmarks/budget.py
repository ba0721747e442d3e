"""Training in this process for so many CPU-seconds: what methods are compared at equal time with.

The project's own objectives, streams, optimizer settings and schedules, without Ray and DeepSpeed:
one process and one torch thread, so that two comparisons run side by side on two cores. Time is the
CPU time of the process in seconds of a reference core (`timer.py`), whatever else the machine does;
a schedule runs over the share of the time that is used. Scores on held-out data do not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from benchmarks.timer import now
from smt_ray.config import TrainConfig
from smt_ray.data.reader import Batch, Stream
from smt_ray.objectives.objective import Objective
from smt_ray.train.loop import learning_rate

Trained = TypeVar("Trained", bound=Objective, contravariant=True)
FINE = 10_000
"""Steps that a schedule over time is divided into."""


@dataclass(frozen=True)
class Scoring(Generic[Trained]):
    """How an objective is scored while it is trained."""

    score: Callable[[Trained], float]
    """A figure on held-out data, higher is better."""
    enough: float = float("inf")
    """Score that ends the training, twice in a row."""
    every: float = 10.0
    """CPU seconds between two scores."""
    best: bool = False
    """End with the weights of the highest score, as the training stages do."""


@dataclass
class Outcome:
    """What a training used, and its scores on the way."""

    seconds: float = 0.0
    """CPU seconds."""
    steps: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Inputs read."""
    scores: list[tuple[float, float]] = field(default_factory=list)
    """(CPU seconds, score) in order."""

    def solved_after(self, enough: float) -> float | None:
        """Return the CPU seconds of the first score of at least `enough`."""
        return next((seconds for seconds, score in self.scores if score >= enough), None)


def train(
    objective: Trained,
    config: TrainConfig,
    stream: Stream,
    seconds: float,
    *,
    steps: float = float("inf"),
    scoring: Scoring[Trained] | None = None,
) -> Outcome:
    """Train until the time or the steps are used, or two scores in a row are enough.

    Args:
        objective: what is trained.
        config: optimisation; its `steps` do not count.
        stream: batches.
        seconds: CPU seconds.
        steps: most steps; with it the schedule runs over whichever share is greater.
        scoring: scores on the way, if any.
    """
    schedule = replace(config, steps=FINE)
    optimizer = _optimizer(objective, config)
    parameters = list(objective.parameters())
    outcome, due = Outcome(), scoring.every if scoring else 0.0
    kept: dict[str, Tensor] = {}
    while outcome.seconds < seconds and outcome.steps < steps:
        began = now()
        share = max(outcome.seconds / seconds, outcome.steps / steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, int(share * FINE))
        done = {"step": torch.tensor(outcome.steps), "progress": torch.tensor(share)}
        batch = {**stream.batch(outcome.steps), **done}
        carry = _step(objective, optimizer, parameters, batch, config)
        if carry is not None:
            stream.carry(outcome.steps, carry)
        outcome.steps += 1
        outcome.tokens += batch["inputs"].numel()
        outcome.seconds += now() - began
        if scoring and outcome.seconds >= due:
            due = outcome.seconds + scoring.every
            outcome.scores.append((outcome.seconds, scoring.score(objective)))
            if scoring.best and outcome.scores[-1][1] == max(value for _, value in outcome.scores):
                kept = {name: value.clone() for name, value in objective.state_dict().items()}
            last = [value for _, value in outcome.scores[-2:]]
            if len(last) == 2 and min(last) >= scoring.enough:
                break
    if kept and scoring and scoring.score(objective) < max(value for _, value in outcome.scores):
        objective.load_state_dict(kept)
    return outcome


def _optimizer(objective: Objective, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only, as the training stages have it."""
    matrices = [p for p in objective.parameters() if p.dim() > 1]
    others = [p for p in objective.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, fused=True)


def _step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    batch: Batch,
    config: TrainConfig,
) -> Tensor | None:
    """Take one step; return what the objective carries to the next visit of the batch."""
    result = objective(batch)
    optimizer.zero_grad()
    result["loss"].backward()
    graded = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(graded, config.clip_norm)
    if not norm.isfinite():
        rate = f"lower the peak rate {config.learning_rate:g}"
        raise FloatingPointError(f"gradient not finite at step {int(batch['step'])}; {rate}")
    optimizer.step()
    return result.get("carry")
