"""Synthetic tasks as a source: sequences made where they are needed, the same ones every time.

They are drawn in blocks; the seed of a block depends on its place in the split and
on the split alone, so that more training sequences leave the first ones and validation as they are.
"""

from collections.abc import Iterator

import numpy as np

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.packer import Examples
from smt_ray.data.pieces import Piece, Weighted, draw
from smt_ray.tasks import TASKS, Task

BLOCK = 1024
"""Sequences of one seed."""


def task_of(config: DataConfig) -> Task:
    """Return the task that the source names.

    Raises:
        ValueError: if there is none of that name.
    """
    name = config.source.removeprefix("task:")
    if name not in TASKS:
        raise ValueError(f"no such task; give one of {', '.join(TASKS)}")
    return TASKS[name]


def task_vocabulary(config: DataConfig) -> int:
    """Return V of the task."""
    return task_of(config).vocabulary(config.task)


def check_task(config: DataConfig) -> None:
    """Check that the task has sequences of the configured length.

    Raises:
        ValueError: naming the field at fault.
    """
    task_of(config).check(config.task, config.sequence_length)


def task_pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    """Return each split's pieces, whole blocks but for the last; a token weighs a byte."""
    task_of(config)
    length, train = config.sequence_length, config.task.sequences
    counts = {"train": train, "validation": max(1, round(train * config.validation_fraction))}
    step = max(1, pieces.UNIT_BYTES // (BLOCK * length)) * BLOCK
    return {
        split: [
            (Piece(split, start, stop), (stop - start) * float(length))
            for start in range(0, count, step)
            for stop in [min(start + step, count)]
        ]
        for split, count in counts.items()
    }


def read_task(parts: tuple[Piece, ...], config: DataConfig, validation: bool) -> Iterator[Examples]:
    """Yield the sequences of the pieces, at most a block at once."""
    task = task_of(config)
    for piece in parts:
        for start in range(piece.start, piece.stop, BLOCK):
            seed = block_seed(start // BLOCK, validation)
            both = task.generate(
                config.task, config.sequence_length, BLOCK, seed, training=not validation
            )
            inputs, targets = (side[: piece.stop - start].numpy().astype(np.int32) for side in both)
            yield Examples(inputs, targets)


def block_seed(block: int, validation: bool) -> int:
    """Return the seed of a block: even distances from the first are training, odd ones validation.

    Torch's generator on the CPU heeds 32 bits of a seed, so these differ in them.
    """
    first = int(draw("task") * 2**32)
    return (first + 2 * block + validation) % 2**32
