"""Where a training runs: the loop asks its host for an engine, checkpoints and the wish to stop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from smt_ray.config import TrainConfig
from smt_ray.objectives.objective import Objective
from smt_ray.train.agreement import FEWEST_S
from smt_ray.train.checkpoint import Checkpoint, State, save_checkpoint
from smt_ray.train.engine import Engine, PlainEngine


class Host(ABC):
    """One of the `world` processes of a training, the one of this `rank`."""

    rank: int = 0
    world: int = 1
    look_s: float = FEWEST_S
    """Seconds after which the ranks look again whether one of them wants to stop or save."""

    @abstractmethod
    def engine(self, objective: Objective, train: TrainConfig) -> Engine:
        """Return an engine around `objective`."""

    @abstractmethod
    def latest(self) -> AbstractContextManager[Checkpoint | None]:
        """Open the checkpoint to go on from, if there is one."""

    @abstractmethod
    def save(self, engine: Engine, step: int, stream: State, loss: float) -> None:
        """Save a checkpoint; all ranks call it.

        Args:
            engine: weights and moments.
            step: optimizer steps done.
            stream: this rank's state of the data stream.
            loss: validation loss, by which the weights that count are chosen.
        """

    @abstractmethod
    def record(self, step: int, values: dict[str, Any]) -> None:
        """Take a row of metrics; all ranks call it with the same."""

    def stop_requested(self, done: int, loss: float, rate: float) -> bool:
        """Report progress; return whether this rank wants to stop after the next step.

        Args:
            done: optimizer steps done.
            loss: latest training loss, in the objective's unit.
            rate: latest tokens per second.
        """
        return False

    def save_requested(self) -> bool:
        """Return whether this rank wants a checkpoint after the next step."""
        return False

    def skipped(self) -> list[int]:
        """Return the steps that are left out, by number, as `skip` has noted them."""
        return []

    def skip(self, step: int, why: str) -> None:  # noqa: B027  most leave none out
        """Note, on rank 0, a step that is left out from the next start on."""

    def position(self, done: int) -> float:
        """Return where the training is in its schedule of `train.steps`: the steps done.

        A host whose budget is no number of steps counts that in its place.
        """
        return done

    def aside(self) -> AbstractContextManager[None]:
        """Return a context for what is no training: validation, logging, saving."""
        return nullcontext()

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Write what is not written yet."""


class InProcess(Host):
    """This process alone, without Ray and DeepSpeed; `rows_of_metrics` are what was logged."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        rows: int = 0,
        device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
    ) -> None:
        """Keep the latest checkpoint in `directory`, if that is given.

        Args:
            directory: where an earlier training is gone on with.
            rows: sequences of a micro-batch; 0: the whole batch.
            device: where it runs.
        """
        self.directory, self.rows, self.device = directory, rows, device
        self.rows_of_metrics: list[dict[str, Any]] = []

    def engine(self, objective: Objective, train: TrainConfig) -> Engine:
        """Return a plain engine."""
        return PlainEngine(objective, train, rows=self.rows, device=self.device)

    @contextmanager
    def latest(self) -> Iterator[Checkpoint | None]:
        """Open the checkpoint in the directory."""
        there = self.directory and (self.directory / "state.json").exists()
        yield Checkpoint(self.directory) if self.directory and there else None

    def save(self, engine: Engine, step: int, stream: State, loss: float) -> None:
        """Write the checkpoint over the one before."""
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_checkpoint(engine, self.directory, step, stream, loss)

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Keep the row."""
        self.rows_of_metrics.append({"step": step, **values})
