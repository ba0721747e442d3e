"""Time of a rank's collectives, from a trace of a few of its steps by `torch.profiler`."""

from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile

MICROSECOND = 1e-6


class Trace:
    """The steps from `start` to `stop`; all ranks trace the same ones, since tracing slows them."""

    def __init__(self, device: torch.device) -> None:
        """Prepare to trace work on `device` and on the CPU."""
        self._kind = device.type.upper()
        activities = {ProfilerActivity.CPU, getattr(ProfilerActivity, self._kind)}
        self._profile = profile(activities=activities, acc_events=True)

    def start(self) -> None:
        """Begin to trace."""
        self._profile.start()

    def stop(self) -> float:
        """Return the seconds in which a collective ran: on a GPU its kernels, with gloo its calls.

        A rank that is ready first waits inside a collective, so what others lack in speed counts.
        """
        self._profile.stop()
        return MICROSECOND * covered(
            (event.time_range.start, event.time_range.end)
            for event in self._profile.events() or ()
            if event.device_type.name == self._kind and event.name.startswith(("gloo:", "nccl"))
        )


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
