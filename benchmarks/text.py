"""The standard library's text in memory, as training and held-out windows of bytes.

Shapes: B batch, L sequence.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.smt import Source
from smt_ray.config import DataConfig
from smt_ray.data import sources
from smt_ray.data.reader import Batch, Stream
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.objectives.objective import hashed

HELD_OUT_TOKENS = 65_536


class Text(Source):
    """Windows of L bytes, each followed by its next one as the last target."""

    vocabulary = 256

    def __init__(self, length: int, seed: int = 0) -> None:
        """Cut windows of `length` (L) inputs; `seed` draws them."""
        self.config = replace(DataConfig(), sequence_length=length)
        self.seed = seed

    @cached_property
    def train(self) -> NDArray[np.uint8]:
        """All training windows, (N, L + 1)."""
        return self._windows("train")

    def training(self, batch: int) -> Stream:
        """Return batches of windows drawn with replacement."""
        return Drawn(self.train, batch, self.seed)

    def held_out(self) -> Batch:
        """Return validation windows, as many as hold `HELD_OUT_TOKENS`, drawn once and for all."""
        windows = self._windows("validation")
        return Drawn(windows, HELD_OUT_TOKENS // self.config.sequence_length, -1).batch(0)

    def _windows(self, split: str) -> NDArray[np.uint8]:
        tokenizer = load_tokenizer(self.config.tokenizer)
        width, parts = self.config.sequence_length + 1, []
        for unit in sources.plan(self.config)[split]:
            packer = sources.packer(unit, self.config, tokenizer)
            for table in packer.tables(sources.read(unit, self.config, tokenizer), 1024):
                flat = table["tokens"].combine_chunks().flatten().to_numpy()
                parts.append(flat.astype(np.uint8).reshape(-1, width))
        return np.concatenate(parts)


class Drawn(Stream):
    """Batches of rows drawn by a hash of the step."""

    def __init__(self, windows: NDArray[np.uint8], rows: int, seed: int) -> None:
        """Draw `rows` of `windows`, (N, L + 1), a step."""
        self.windows, self.rows, self.seed = windows, rows, seed

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`."""
        drawn = hashed(self.seed, step, torch.arange(self.rows)) % len(self.windows)
        tokens = torch.from_numpy(self.windows[drawn.numpy()].astype(np.int64))
        return {"sequence_id": drawn, "inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
