"""Tasks that ask for a computation on what was read.

Shapes: B sequences, L inputs in a sequence.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from smt_ray.config import TaskConfig
from smt_ray.tasks.task import MARKER, Sequences, Task, draw_distinct, no_targets, require_length

DEPTH = 10
"""Symbols that the stack holds, at most."""
MODULUS = 13
"""V of `modular`: a prime, so that two pairs determine w and b."""
COEFFICIENTS = 4
"""d of `modular`: w and b are drawn from 0..d-1."""


class Stack(Task):
    """Push a random symbol, or pop with the marker; a pop's target is the symbol it takes off.

    Pushes and pops are equally likely where both are possible: the stack is empty at first and
    holds at most `DEPTH` symbols.
    """

    def vocabulary(self, config: TaskConfig) -> int:
        """Return the marker and N symbols."""
        return 1 + config.symbols

    def check(self, config: TaskConfig, length: int) -> None:
        """Require a push and a pop."""
        require_length(length, 2, "a push and a pop")

    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Run all rows' stacks one input at a time."""
        inputs = torch.randint(1, 1 + config.symbols, (rows, length), generator=random)
        wish = torch.rand(rows, length, generator=random) < 0.5
        targets = no_targets(inputs)
        stack = torch.zeros(rows, DEPTH, dtype=torch.int64)
        held, row = torch.zeros(rows, dtype=torch.int64), torch.arange(rows)
        for t in range(length):
            pop = (wish[:, t] & (held > 0)) | (held == DEPTH)
            top = stack[row, (held - 1).clamp(min=0)]
            targets[pop, t] = top[pop]
            stack[row[~pop], held[~pop]] = inputs[~pop, t]
            inputs[pop, t] = MARKER
            held += torch.where(pop, -1, 1)
        return inputs, targets


class Modular(Task):
    """Pairs x, (w x + b) mod V with w, b < d of the sequence's own; each x asks for its second.

    Scored from the third pair: the first two, whose x differ, determine w and b where V is prime.
    An odd L ends with an x without its second.
    """

    def vocabulary(self, config: TaskConfig) -> int:
        """Return V."""
        return MODULUS

    def check(self, config: TaskConfig, length: int) -> None:
        """Require a third pair."""
        require_length(length, 5, "a pair after the two that determine w and b")

    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Draw w, b and every x."""
        w, b = torch.randint(COEFFICIENTS, (2, rows, 1), generator=random)
        x = torch.randint(MODULUS, (rows, (length + 1) // 2), generator=random)
        x[:, :2] = draw_distinct(rows, 2, MODULUS, random)
        y = (w * x + b) % MODULUS
        inputs = torch.stack((x, y), dim=2).flatten(1)[:, :length]
        targets = no_targets(inputs)
        targets[:, 4::2] = y[:, 2:]
        return inputs, targets


class Parity(Task):
    """Random bits; the target at each is the XOR of all bits so far."""

    def vocabulary(self, config: TaskConfig) -> int:
        """Return 2."""
        return 2

    def check(self, config: TaskConfig, length: int) -> None:
        """Require one bit."""
        require_length(length, 1, "a bit")

    def draw(
        self, config: TaskConfig, length: int, rows: int, random: torch.Generator
    ) -> Sequences:
        """Draw the bits."""
        inputs = torch.randint(2, (rows, length), generator=random)
        return inputs, inputs.cumsum(1) % 2

    def state(
        self, config: TaskConfig, inputs: Int[Tensor, "B L"], targets: Int[Tensor, "B L"]
    ) -> Int[Tensor, "B L"]:
        """Return the XOR so far."""
        return targets
