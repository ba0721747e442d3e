"""The validation sequences that a run is scored on, read anew each time that they are asked for."""

from collections.abc import Iterator

from smt_ray.config import RunConfig
from smt_ray.data.manifest import check_shards, open_manifest
from smt_ray.data.reader import SPREAD, Reader
from smt_ray.data.rows import Batch
from smt_ray.data.storage import Location
from smt_ray.evaluation import longer

BATCH = 256
"""Sequences in one batch, at most; they are rolled out as many at once as fit."""


class HeldOut:
    """Validation sequences in batches whose memories fit."""

    def __init__(self, config: RunConfig, directory: Location) -> None:
        """Choose as many sequences as are asked for and there are.

        Raises:
            ValueError: if `directory` holds no whole token shards.
        """
        self.config, self.directory = config, directory
        self.manifest = open_manifest(directory, "tokens")
        check_shards(directory, self.manifest)
        self.count = min(config.evaluation.sequences, self.manifest["sequences"])

    def batches(self) -> Iterator[Batch]:
        """Yield them in batches of one size; what does not fill the last one is left out."""
        size = min(BATCH, self.count)
        place, manifest = self.directory, self.manifest
        reader = Reader(place, manifest, global_batch=size, seed=0, lanes=1, chunk=SPREAD)
        for step in range(self.count // size):
            yield reader.batch(step)

    def longer(self) -> Iterator[Batch]:
        """Yield sequences of `longer.FACTOR` times the length, as much work; none of pixels."""
        data = self.config.data
        count = max(1, self.count // longer.FACTOR)
        if data.kind == "text":
            yield from longer.joined_windows(self.directory, self.manifest, count, BATCH)
        elif data.kind == "task":
            yield from longer.longer_task(data, count, BATCH)
