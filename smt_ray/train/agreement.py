"""What all ranks must do at the same step: stop, or save. They look together who wants to.

A look waits for every rank, so most steps have none.
"""

import time
from typing import Protocol

FEWEST_S = 1.0
"""Seconds from look to look, about."""
MOST_STEPS = 64
"""Steps from look to look, at most."""


class Ranks(Protocol):
    """All ranks, as an engine knows them."""

    @property
    def world(self) -> int:
        """How many there are."""

    def greatest(self, values: list[int]) -> list[int]:
        """Return the greatest of each value over the ranks, which wait for each other."""


class Agreement:
    """One rank's wishes, and the steps at which the ranks look at them."""

    def __init__(self, ranks: Ranks, seconds: float = FEWEST_S) -> None:
        """Look at the first step, and then about every so many `seconds`."""
        self.ranks, self.seconds = ranks, seconds
        self._wishes = 0, 0
        self._steps, self._looked = 1, time.monotonic()
        self._left = 1

    def look(self, *, stop: bool, save: bool) -> tuple[bool, bool]:
        """Take this rank's wishes before a step; return which any rank has, if all look now."""
        kept_stop, kept_save = self._wishes
        self._wishes = max(kept_stop, stop), max(kept_save, save)
        self._left -= 1
        if self._left and self.ranks.world > 1:
            return False, False
        now = time.monotonic()
        each, self._looked = (now - self._looked) / self._steps, now
        wanted = int(min(self.seconds / max(each, 1e-9), MOST_STEPS))
        stopping, saving, steps = self.ranks.greatest([*self._wishes, max(wanted, 1)])
        self._wishes, self._steps, self._left = (0, 0), steps, steps
        return bool(stopping), bool(saving)
