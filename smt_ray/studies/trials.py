"""The trials of a sweep: their settings before they run, their records on disk."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from smt_ray.cluster.resources import resolved, there
from smt_ray.config import RunConfig
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.pipeline.stages import fingerprints, locations
from smt_ray.report.ranking import Entry
from smt_ray.studies.space import Fields, written

logger = logging.getLogger(__name__)
Configure = Callable[[Fields], RunConfig]
"""Makes the run that is meant by the swept fields and the values that all trials share."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    entry: Entry
    config: RunConfig
    source: str
    """The fingerprint of its source."""

    @property
    def id(self) -> str:
        """Its number in the sweep, as text."""
        return self.entry.id

    def locations(self) -> dict[str, Location]:
        """Return where its artifacts lie, as far as that is known."""
        return locations(self.config, self.source, Location.of(self.config.storage))

    def named(self) -> Entry:
        """Return its entry, with the names that its artifacts have once its tokens are made."""
        names = {stage: location.name for stage, location in self.locations().items()}
        return replace(self.entry, stages={**self.entry.stages, **names})


class Planner:
    """Makes trials: checks their settings, and knows which artifacts they will share."""

    def __init__(self, name: str, configure: Configure) -> None:
        """Make the trials of the sweep `name`."""
        self.name, self.configure = name, configure
        self._plan = functools.cache(plan_source)

    def trial(self, number: int, fields: Fields) -> Trial:
        """Return a trial with its own run name.

        Raises:
            ValueError: if its settings do not fit each other, or its source is not there.
        """
        own = f"{number:03d}"
        config = replace(self.configure(fields), name=f"{self.name}-{own}")
        source = self._plan(config.data).fingerprint
        stages = {
            stage: f"{stage}-{found}" for stage, found in fingerprints(config, source).items()
        }
        trial = Trial(Entry(id=own, fields=fields, stages=stages), config, source)
        return replace(trial, entry=trial.named())

    def trials(self, points: Iterable[Fields]) -> list[Trial]:
        """Return a trial for each point.

        Raises:
            ValueError: in one line that names the first point that cannot be run.
        """
        found = []
        for number, fields in enumerate(points):
            try:
                found.append(self.trial(number, fields))
            except ValueError as error:
                raise ValueError(f"space=({written(fields)}): {error}") from error
        return found


def on_one_gpu(config: RunConfig) -> RunConfig:
    """Return a trial with numbers in place of `auto`: one GPU at most, so that others fit beside.

    Ray must be there.
    """
    found = there()
    return resolved(config, found | {"GPU": min(1.0, found["GPU"])})


def in_turn(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials in the order to run them: first of all, one of each teacher.

    Trials that run side by side then make teachers of their own, rather than wait for one.
    """
    turns: dict[str, int] = {}
    order: dict[str, int] = {}
    for trial in trials:
        teacher = trial.entry.stages["teacher"]
        order[trial.id] = turns[teacher] = turns.get(teacher, -1) + 1
    return sorted(trials, key=lambda trial: order[trial.id])


def distinct(entries: Iterable[Entry], stage: str) -> set[str]:
    """Return the names of a stage's artifacts that any of the trials is made of."""
    return {entry.stages[stage] for entry in entries if stage in entry.stages}


class Records:
    """What became of each trial: one file each, written when it begins and when it ends."""

    def __init__(self, directory: Location) -> None:
        """Keep the files in `directory`."""
        self.directory = directory

    def write(self, entry: Entry) -> None:
        """Write a trial's record whole."""
        self.directory.make_dir()
        (self.directory / f"{entry.id}.json").write_json(entry.to_dict())

    def read(self, number: str) -> Entry:
        """Return a trial's record."""
        return _entry(self.directory / f"{number}.json")

    def all(self) -> list[Entry]:
        """Return the records of all trials that have begun, by number."""
        return [_entry(file) for file in self.directory.files(".json")]

    def clear(self) -> None:
        """Forget all trials; what they made stays."""
        self.directory.delete_dir()


def _entry(file: Location) -> Entry:
    try:
        return Entry(**file.read_json())
    except TypeError as error:  # JSON, but of something else
        raise file.damaged(error) from error
