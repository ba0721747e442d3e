"""What Ray Train's controller does when workers fail: counts it, and ends what would fail again."""

from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from ray.train import UserCallback

from smt_ray.cluster.heartbeat import Beats, described, end, unanswered
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
    """Counts failures; raises the first recurring one, which ends the training without a retry.

    A rank that does not answer is named and killed, so that no stopped process outlives its place.
    """

    def __init__(self, run: str, stage: str, board: Any, timeout_s: float) -> None:
        """Count for a stage of a run.

        Args:
            run: name of the run.
            stage: name of the stage.
            board: the driver's board, which knows the ranks' beats.
            timeout_s: seconds after which a collective is given up.
        """
        self.run, self.stage, self.board, self.timeout_s = run, stage, board, timeout_s

    def after_exception(
        self, run_context: object, worker_exceptions: Mapping[int, Exception]
    ) -> None:
        """Count one failure, whatever the number of workers that it took."""
        count("smt_ray_training_failures", self.run, self.stage)
        for _, exception in sorted(worker_exceptions.items()):
            if isinstance(exception, RECURRING) or is_lasting(exception):
                raise exception
        self._end_hung(worker_exceptions)

    def _end_hung(self, worker_exceptions: Mapping[int, Exception]) -> None:
        beats: Beats = ray.get(self.board.beats.remote())
        for rank, beat in unanswered(beats, self.timeout_s).items():
            if not _has_died(worker_exceptions.get(rank)):
                self.board.explain.remote(described(beat))
                end(beat[0])


def _has_died(exception: Exception | None) -> bool:
    """Return whether Ray knows the process of a rank to be dead."""
    return isinstance(getattr(exception, "health_check_failure", None), RayActorError)
