"""CPU time of this process, in seconds of a reference core.

In a CPU second a fast machine trains further than a slow one, or than the same one while others use
its caches and memory. What is compared at equal time is therefore timed by work: every few seconds
a small fixed layer is trained for some steps, and the CPU seconds until the next such probe count
by how many steps a second it reached. Probes take no time of what is timed.

Other work than the probe's gains more or less from a fast machine: `docs/results.md` tells how far
the steps of one training differ.
"""

import time
from functools import cache

import torch

REFERENCE = 100.0
"""Steps a CPU second of the reference core."""
STEPS = 4
"""Steps of a probe."""
EVERY = 2.0
"""CPU seconds from one probe to the next: they take about 2 % of the process."""


class Timer:
    """Counts from its making."""

    def __init__(self) -> None:
        """Make the layer, and leave the random numbers of others as they are."""
        with torch.random.fork_rng(devices=()), torch.inference_mode(mode=False):
            self.layer = torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True)
            self.input = torch.randn(64, 8, 64)
        self.weights = list(self.layer.parameters())
        self.used = self.seconds = 0.0
        self.work(10)  # warms up
        self.probe()

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def work(self, steps: int) -> None:
        """Take some steps forward and back, also where what is timed takes no gradient."""
        for _ in range(steps):
            torch.autograd.grad(self.layer(self.input).square().mean(), self.weights)

    def probe(self) -> None:
        """Find out what a CPU second is worth now."""
        began = time.process_time()
        self.work(STEPS)
        self.probed = self.marked = time.process_time()
        self.worth = STEPS / (self.marked - began) / REFERENCE

    def now(self) -> float:
        """Return the seconds of the reference core so far."""
        at = time.process_time()
        self.used += at - self.marked
        self.seconds += (at - self.marked) * self.worth
        self.marked = at
        if at - self.probed > EVERY:
            self.probe()
        return self.seconds

    @property
    def speed(self) -> float:
        """Mean steps a CPU second so far."""
        return REFERENCE * self.seconds / self.used if self.used else REFERENCE * self.worth


@cache
def timer() -> Timer:
    """Return the timer of this process."""
    return Timer()


def now() -> float:
    """Return the seconds of the reference core that this process has used."""
    return timer().now()
