"""What a synthetic task is, and the draws that tasks share.

Shapes: B sequences, L inputs in a sequence.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Int
from torch import Tensor

from smt_ray.config import TaskConfig
from smt_ray.objectives.objective import IGNORED

MARKER = 0
"""Symbol that announces a question, or asks for an answer; the others are 1..N."""
UNKNOWN = -1
"""State id where nothing is to be remembered yet."""

Sequences = tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]
"""Inputs, and targets with `IGNORED` where there is none."""


class Task(ABC):
    """Makes sequences; the same arguments make the same ones on any machine."""

    @abstractmethod
    def vocabulary(self, config: TaskConfig) -> int:
        """Return V: symbols in inputs and targets are 0..V-1."""

    @abstractmethod
    def check(self, config: TaskConfig, length: int) -> None:
        """Raise `ValueError`, naming the field at fault, if no sequence of `length` exists."""

    @abstractmethod
    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Draw `rows` sequences of `length` inputs."""

    def state(
        self, config: TaskConfig, inputs: Int[Tensor, "B L"], targets: Int[Tensor, "B L"]
    ) -> Int[Tensor, "B L"]:
        """Return a number of what must be remembered after each input; `UNKNOWN` everywhere here.

        Memories are coloured by it.
        """
        return torch.full_like(inputs, UNKNOWN)

    def generate(
        self, config: TaskConfig, length: int, rows: int, seed: int, *, training: bool = False
    ) -> Sequences:
        """Draw `rows` sequences from their seed; only where they are for training, easier ones too.

        Raises:
            ValueError: if no sequence of `length` exists.
        """
        self.check(config, length)
        if not training:
            config = config.held_out
        return self.draw(config, length, rows, torch.Generator().manual_seed(seed))


def require_length(length: int, least: int, what: str) -> None:
    """Raise `ValueError` unless a sequence of `length` holds `what`, which takes `least` inputs."""
    if length < least:
        raise ValueError(f"data.sequence-length={length}: {what} takes at least {least} inputs")


def no_targets(inputs: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Return targets that ask for nothing."""
    return torch.full_like(inputs, IGNORED)


def draw_distinct(
    rows: int, count: int, choices: int, random: torch.Generator
) -> Int[Tensor, "B n"]:
    """Return `count` distinct numbers of 0..choices-1 a row, each ordered choice equally likely.

    Floyd's algorithm, all rows at once: its set is uniform, and a shuffle makes the order so.
    """
    chosen = torch.empty(rows, 0, dtype=torch.int64)
    for top in range(choices - count, choices):
        drawn = torch.randint(top + 1, (rows, 1), generator=random)
        taken = (chosen == drawn).any(1, keepdim=True)
        chosen = torch.cat((chosen, torch.where(taken, top, drawn)), dim=1)
    order = torch.rand(rows, count, generator=random).argsort(dim=1)
    return chosen.gather(1, order)
