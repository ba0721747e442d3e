"""What a training run writes down: `metrics.jsonl`, TensorBoard events, and the progress line."""

import json
import shutil
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from smt_ray.data.storage import Location

FLUSH_S = 10.0
Row = dict[str, Any]


class MetricsLog:
    """Rows of one stage, kept by rank 0 and rewritten whole, so that any store will do."""

    def __init__(self, directory: Location, stage: str, step: int) -> None:
        """Go on after `step`: later rows of an interrupted try are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.directory, self.stage = directory, stage
        self.rows = [row for row in read_metrics(directory) if row["step"] <= step]
        self._local = Path(mkdtemp(prefix="smt-ray-tensorboard-"))
        self._board = SummaryWriter(str(self._local), purge_step=step + 1)
        self._flushed = time.monotonic()

    def add(self, step: int, values: Row) -> None:
        """Add one row of named figures."""
        self.rows.append({"stage": self.stage, "step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write everything to the directory."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.directory / "metrics.jsonl").write_text(text)
        self._board.flush()
        Location.of(self._local).copy_to((self.directory / "tensorboard").make_dir())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write everything, and remove the local copy."""
        self.flush()
        self._board.close()
        shutil.rmtree(self._local)


def read_metrics(directory: Location) -> list[Row]:
    """Return the rows that a stage wrote; none if it has not begun."""
    place = directory / "metrics.jsonl"
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
