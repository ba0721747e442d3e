"""Finished units of the token stage, which a later try finds again.

A unit's shards lie in `<artifact>/<split>/`, its record in `<artifact>/units/<fingerprint>.json`,
written after them; the fingerprint is a digest of all that decides what the shards hold. The same
try goes on from its own records. A try on a source that was corrected has another artifact: it
copies the units that are the same from earlier unfinished ones, and deletes those that had failed
once it is finished.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from smt_ray.data.manifest import MANIFEST
from smt_ray.data.storage import Location

UNITS = "units"
TRY = "try.json"
"""Names the settings of the try and says whether it has failed; it lies beside the records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What became of one unit: its shards, and counts."""

    fingerprint: str
    split: str
    digest: str
    """Of its rows."""
    shards: dict[str, dict[str, int]]
    """By name what a manifest says of them: `rows`, `first_id`, `bytes`."""
    bytes: int
    documents: int
    tokens: int
    targets: int
    """Of its own that a row has at most; 0: they are the next tokens."""

    def write(self, target: Location) -> None:
        """Write the record of shards that are in place."""
        (target / UNITS / f"{self.fingerprint}.json").write_json(asdict(self))

    def copy(self, source: Location, target: Location) -> None:
        """Copy the unit from an earlier try.

        Raises:
            FileNotFoundError: if it is no longer there.
        """
        for name in self.shards:
            (source / self.split / name).copy_to(target / self.split / name)
        self.write(target)


class Try:
    """The units of one try to write an artifact, and those of earlier tries on the same source."""

    def __init__(self, target: Location, settings: Any, splits: Iterable[str]) -> None:
        """Begin at `target`: what is there and belongs to no finished unit is removed.

        Args:
            target: the place of the artifact.
            settings: what the tries on one source have in common, JSON values.
            splits: the directories of the shards.
        """
        self.target, self.splits = target, tuple(splits)
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        for folder in (UNITS, *self.splits):
            (target / folder).make_dir()
        self._say(failed=False)
        there = {split: {f.name: f for f in (target / split).files()} for split in self.splits}
        records = [r for r in _records(target) if r.shards.keys() <= there[r.split].keys()]
        self.done = {record.fingerprint: record for record in records}
        for split, files in there.items():
            kept = {name for record in records if record.split == split for name in record.shards}
            for name in files.keys() - kept:
                target.filesystem.delete_file(files[name].path)

    def elsewhere(self, fingerprints: Iterable[str]) -> dict[str, tuple[Record, Location]]:
        """Return which of the units earlier tries have finished, and where."""
        wanted = set(fingerprints)
        return {
            record.fingerprint: (record, location)
            for location, _ in self._earlier()
            for record in _records(location)
            if record.fingerprint in wanted
        }

    def fail(self) -> None:
        """Say that this try ends without its artifact, so that a later one may delete it."""
        self._say(failed=True)

    def finish(self) -> None:
        """Delete the records, and the earlier tries that failed."""
        for location, failed in self._earlier():
            if failed:
                location.delete_dir()
        (self.target / UNITS).delete_dir()

    def _say(self, *, failed: bool) -> None:
        (self.target / UNITS / TRY).write_json({"settings": self.settings, "failed": failed})

    def _earlier(self) -> list[tuple[Location, bool]]:
        """Return unfinished tries with the same settings, and whether they have failed."""
        stage = self.target.name.partition("-")[0]
        parent = Location(self.target.filesystem, self.target.path.rpartition("/")[0])
        found = []
        for location in parent.directories():
            note = location / UNITS / TRY
            other = location.name.startswith(f"{stage}-") and location.name != self.target.name
            if other and note.exists() and not (location / MANIFEST).exists():
                said = note.read_json()
                if said["settings"] == self.settings:
                    found.append((location, said["failed"]))
        return found


def _records(target: Location) -> list[Record]:
    files = [file for file in (target / UNITS).files(".json") if file.name != TRY]
    with ThreadPoolExecutor(16) as pool:
        return [Record(**value) for value in pool.map(Location.read_json, files)]
