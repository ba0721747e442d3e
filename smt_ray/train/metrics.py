"""What a training run writes down: `metrics.jsonl`, TensorBoard events, and who else is told."""

import json
import shutil
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from smt_ray.cluster.prometheus import show
from smt_ray.cluster.weights_and_biases import WandbRun
from smt_ray.config import RunConfig
from smt_ray.data.storage import Location

FLUSH_S = 10.0
Row = dict[str, Any]


class MetricsLog:
    """Rows of one stage, kept by rank 0 and rewritten whole, so that any store will do.

    TensorBoard, Prometheus and, where the run asks for it, Weights & Biases are told each row.
    """

    def __init__(self, config: RunConfig, directory: Location, stage: str, step: int) -> None:
        """Go on after `step`: later rows of an interrupted try are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.directory, self.stage, self.run = directory, stage, config.name
        self.rows = [row for row in read_metrics(directory) if row["step"] <= step]
        self._local = Path(mkdtemp(prefix="smt-ray-metrics-"))
        self._events = self._local / "tensorboard"
        self._board = SummaryWriter(str(self._events), purge_step=step + 1)
        self._wandb = None
        if config.runtime.wandb_project:
            self._wandb = WandbRun(config, stage, directory, self._local)
        self._flushed = time.monotonic()

    def add(self, step: int, values: Row) -> None:
        """Add one row of named figures."""
        self.rows.append({"stage": self.stage, "step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        show({"step": step, **values}, self.run, self.stage)
        if self._wandb:
            self._wandb.add(step, values)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write everything to the directory."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.directory / "metrics.jsonl").write_text(text)
        self._board.flush()
        Location.of(self._events).copy_to((self.directory / "tensorboard").make_dir())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write everything, and remove the local copy."""
        try:
            self.flush()
            self._board.close()
            if self._wandb:
                self._wandb.close()
        finally:
            shutil.rmtree(self._local)


def read_metrics(directory: Location) -> list[Row]:
    """Return the rows that a stage wrote; none if it has not begun.

    Raises:
        ValueError: in one line that names the file and the line, if it is damaged.
    """
    location = directory / "metrics.jsonl"
    lines = location.read_bytes().splitlines() if location.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise location.damaged(f"line {number}: {error}", "delete that line") from error
    return rows
