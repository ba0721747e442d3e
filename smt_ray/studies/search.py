"""Which trial is run next, as Ray Tune asks for it, and what is told when one has ended."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from smt_ray.report.leaderboard import note
from smt_ray.report.ranking import Entry, higher_is_better
from smt_ray.report.table import written as figure
from smt_ray.studies.space import Choice, Fields, Space, written
from smt_ray.studies.trainable import BITS, STEP
from smt_ray.studies.trials import Planner, Records, Trial
from smt_ray.terminal import duration

logger = logging.getLogger(__name__)


class Suggestions:
    """Optuna's suggestions of fields; what is known of other trials is told to it first."""

    def __init__(
        self, space: Space, metric: str, seed: int, planner: Planner, known: Sequence[Entry]
    ) -> None:
        """Begin after the trials that are `known`, finished or not."""
        self.metric, self.planner = metric, planner
        mode = "max" if higher_is_better(metric) else "min"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Another seed each time it begins: the same one would suggest the same points again.
        self._optuna = OptunaSearch(
            {part.field: _distribution(part) for part in space},
            metric=metric,
            mode=mode,
            seed=seed + len(known),
        )
        self._asked: set[str] = set()
        self._next = 1 + max((int(entry.id) for entry in known), default=-1)
        for entry in known:
            if entry.status in {"finished", "stopped"}:
                self.tell(entry)

    def ask(self, records: Records) -> Trial | None:
        """Return a trial of the fields that Optuna suggests; one that cannot be run is recorded."""
        number, self._next = self._next, self._next + 1
        mark = f"{number:03d}"
        self._asked.add(mark)
        fields: Fields = dict(self._optuna.suggest(mark) or {})
        try:
            return self.planner.trial(number, fields)
        except ValueError as error:
            entry = Entry(id=mark, status="failed", fields=fields, error=str(error))
            records.write(entry)
            self.tell(entry)
            return None

    def tell(self, entry: Entry) -> None:
        """Tell Optuna how a trial ended, whether it was asked for here or before.

        One without a score counts as worse than all others: of one that failed, Optuna would learn
        nothing, and suggest its like again and again.
        """
        fields, score = dict(entry.fields), entry.score(self.metric)
        if entry.id in self._asked:
            result = None if score is None else {self.metric: score}
            self._optuna.on_trial_complete(entry.id, result)
        elif score is None:
            self._optuna.add_evaluated_point(fields, math.nan, pruned=True)
        else:
            self._optuna.add_evaluated_point(fields, score)


class Search(Searcher):
    """Gives Tune the planned trials in turn, and after them Optuna's, up to so many."""

    def __init__(
        self,
        planned: Sequence[Trial],
        suggestions: Suggestions | None,
        total: int,
        metric: str,
        records: Records,
        overwrite: bool,
    ) -> None:
        """Run `planned`, then suggested trials until there are `total`, earlier ones counted."""
        super().__init__()
        self._ordered_by = metric
        self._planned, self._suggestions, self._total = list(planned), suggestions, total
        self._records, self._overwrite = records, overwrite
        self._running: dict[str, Trial] = {}
        self._said: set[tuple[str, int]] = set()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Take what Tune knows, which is nothing."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the settings of Tune's next trial, and record that it has begun."""
        trial = self._next_trial()
        if trial is None:
            return Searcher.FINISHED
        self._running[trial_id] = trial
        self._records.write(trial.entry)
        logger.info("trial %s begins: %s", trial.id, written(trial.entry.fields))
        return {"trial": trial, "records": self._records, "overwrite": self._overwrite}

    def _next_trial(self) -> Trial | None:
        if self._planned:
            return self._planned.pop(0)
        while self._suggestions and len(self._records.all()) < self._total:
            if trial := self._suggestions.ask(self._records):
                return trial
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Say what a trial says."""
        trial = self._running[trial_id]
        if "line" in result:
            logger.info("trial %s  %s", trial.id, result["line"])
        elif BITS in result and (trial.entry.stages["teacher"], result[STEP]) not in self._said:
            self._said.add((trial.entry.stages["teacher"], result[STEP]))
            said = f"{'teacher':<10} at step {result[STEP]:,}: {result[BITS]:.3f} bits a token"
            logger.info("trial %s  %s", trial.id, said)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note how a trial ended: it has recorded that itself, unless it was stopped or lost."""
        trial = self._running.pop(trial_id)
        entry = self._records.read(trial.id)
        if entry.status == "running":
            known = {f"stopped_{name}": (result or {}).get(name) for name in (STEP, BITS)}
            entry = replace(entry, status="stopped", figures=known)
            if error:
                entry = replace(entry, status="failed", error="its process was lost")
            self._records.write(entry)
        if self._suggestions:
            self._suggestions.tell(entry)
        done = sum(other.status != "running" for other in self._records.all())
        logger.info("trial %s %s (%d of %d)", trial.id, self._end_of(entry), done, self._total)

    def _end_of(self, entry: Entry) -> str:
        """Return how a trial ended, in words."""
        if entry.status == "finished":
            score, took = entry.figures.get(self._ordered_by), entry.figures["wall_seconds"]
            named = f"{self._ordered_by} {figure(self._ordered_by, score)}"
            return f"finished in {duration(took)}: {named}"
        return f"{entry.status}: {note(entry)}"

    def __getstate__(self) -> dict[str, Any]:
        """Give Tune nothing to save: the records are what a sweep goes on from."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


def _distribution(part: Any) -> BaseDistribution:
    """Return Optuna's name for a part of the space."""
    if isinstance(part, Choice):
        return CategoricalDistribution(part.values)
    if part.whole:
        return IntDistribution(part.low, part.high, log=part.log)
    return FloatDistribution(part.low, part.high, log=part.log)
