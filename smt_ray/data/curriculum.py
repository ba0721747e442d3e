"""A curriculum of lengths: training sequences that double from stage to stage up to L.

Short sequences of a task are drawn as such, whole with their answers; those of text and images are
the beginnings of long ones.
"""

from collections.abc import Callable, Sequence

import torch

from smt_ray.config import DataConfig
from smt_ray.data.order import share
from smt_ray.data.reader import Stream
from smt_ray.data.rows import Batch, asked
from smt_ray.data.synthetic import task_of
from smt_ray.objectives.objective import IGNORED, hashed


class Growing(Stream):
    """Several streams, one after the other, each for an equal share of the training."""

    def __init__(self, streams: Sequence[Stream], share: Callable[[int], float]) -> None:
        """Take turns.

        Args:
            streams: in order.
            share: the share of the training, in [0, 1], that is done before a step.
        """
        self.streams, self.share = streams, share

    def batch(self, step: int) -> Batch:
        """Return the batch of the stream whose turn it is."""
        turn = int(self.share(step) * len(self.streams))
        return self.streams[min(turn, len(self.streams) - 1)].batch(step)


class Beginnings(Stream):
    """The first `length` timesteps of another stream's sequences."""

    def __init__(self, whole: Stream, length: int) -> None:
        """Cut the sequences of `whole`."""
        self.whole, self.length = whole, length

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`."""
        batch = self.whole.batch(step)
        cut = {name: batch[name][:, : self.length] for name in ("inputs", "targets")}
        return {"sequence_id": batch["sequence_id"], **cut}


class Drawn(Stream):
    """Fresh sequences of a task in every batch."""

    def __init__(
        self,
        data: DataConfig,
        length: int,
        rows: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        group: int = 1,
        training: bool = True,
    ) -> None:
        """Draw `rows` sequences of `length` for a global batch, of which a rank has its share.

        Args:
            data: the task and its sizes.
            length: inputs in a sequence.
            rows: sequences in a global batch.
            seed: seed of the sequences.
            rank: this rank.
            world: number of ranks.
            group: consecutive sequences that stay on one rank.
            training: whether easier sequences may be among them.
        """
        self.data, self.length, self.rows, self.seed = data, length, rows, seed
        self.columns = share(rows, rank, world, group)
        self.training = training

    def batch(self, step: int) -> Batch:
        """Draw this rank's share of the batch of `step`."""
        seed = int(hashed(self.seed, self.length, step)) % 2**32
        task, sizes = task_of(self.data), self.data.task
        inputs, targets = task.generate(sizes, self.length, self.rows, seed, training=self.training)
        batch = {
            "sequence_id": torch.arange(self.rows) + step * self.rows,
            "inputs": inputs,
            "targets": targets,
        }
        most = max(1, int((targets != IGNORED).sum(1).max()))
        if most < self.length:
            batch["asked"] = asked(targets, most)
        return {name: value[self.columns] for name, value in batch.items()}


def lengths(data: DataConfig, stages: int) -> list[int]:
    """Return the lengths of a curriculum of so many stages, the last one L.

    None is below the shortest at which a task exists.
    """
    length, least = data.sequence_length, 1
    if data.kind == "task":
        least = shortest(data)
    return [max(length >> n, least) for n in reversed(range(stages))]


def shortest(data: DataConfig) -> int:
    """Return the shortest length at which the task exists, L at most."""
    task = task_of(data)
    for length in range(1, data.sequence_length):
        try:
            task.check(data.task, length)
        except ValueError:
            continue
        return length
    return data.sequence_length


def growing(
    whole: Stream,
    data: DataConfig,
    stages: int,
    share: Callable[[int], float],
    *,
    rows: int,
    seed: int,
    rank: int,
    world: int,
    group: int = 1,
) -> Stream:
    """Return `whole` behind a curriculum of lengths; one stage is `whole` alone.

    Args:
        whole: sequences of L inputs.
        data: where they come from.
        stages: lengths, the last one L.
        share: the share of the training that is done before a step.
        rows: sequences in a global batch.
        seed: seed of a task's short sequences.
        rank: this rank.
        world: number of ranks.
        group: consecutive sequences that stay on one rank.
    """
    if stages == 1:
        return whole
    early: list[Stream] = [
        Drawn(data, length, rows, seed, rank=rank, world=world, group=group)
        if data.kind == "task"
        else Beginnings(whole, length)
        for length in lengths(data, stages)[:-1]
    ]
    return Growing([*early, whole], share)
