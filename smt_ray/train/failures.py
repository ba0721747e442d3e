"""What Ray Train's controller does when workers fail: counts it, and ends what would fail again."""

from collections.abc import Mapping

import torch
from ray.train import UserCallback

from smt_ray.cluster.prometheus import count
from smt_ray.cluster.refusals import is_lasting

RECURRING = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
    torch.OutOfMemoryError,
)
"""Exceptions of the training itself. A restart from the last checkpoint would meet them again."""


class Failures(UserCallback):
    """Counts failures; raises the first recurring one, which ends the training without a retry."""

    def __init__(self, run: str, stage: str) -> None:
        """Count for a stage of a run."""
        self.run, self.stage = run, stage

    def after_exception(
        self, run_context: object, worker_exceptions: Mapping[int, Exception]
    ) -> None:
        """Count one failure, whatever the number of workers that it took."""
        count("smt_ray_training_failures", self.run, self.stage)
        for _, exception in sorted(worker_exceptions.items()):
            if isinstance(exception, RECURRING) or is_lasting(exception):
                raise exception
