"""One run, from its settings to its run directory."""

import time
from dataclasses import dataclass, replace
from typing import Any

import yaml

from smt_ray.cluster.refusals import explained
from smt_ray.cluster.session import check_storage, connect, preflight
from smt_ray.config import RunConfig
from smt_ray.data.source_plan import SourcePlan, plan_source
from smt_ray.data.storage import Location
from smt_ray.model.cells import cell_class
from smt_ray.pipeline.artifacts import MANIFEST
from smt_ray.pipeline.building import Stages
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.planning import label_bytes_to_write
from smt_ray.pipeline.run_directory import check_same_run, write_run
from smt_ray.pipeline.stages import locations, upstream


@dataclass(frozen=True)
class Run:
    """One run, resolved: its settings, its source, and where its results lie."""

    config: RunConfig
    source: SourcePlan
    storage: Location

    @classmethod
    def of(cls, config: RunConfig) -> "Run":
        """Look at the source, and check all that is known before any work.

        Raises:
            ValueError: for what the user can mend, in one line.
        """
        for model in (config.model, config.rnn_model):
            cell_class(model.cell)  # a user's class that is not there is refused now
        storage = Location.of(config.storage, "storage")
        return cls(config, plan_source(config.data), storage)

    @property
    def directory(self) -> Location:
        """The run directory."""
        return self.storage / self.config.name

    def locations(self) -> dict[str, Location]:
        """Return where the artifacts lie, those of stages after `tokens` once that is made."""
        return locations(self.config, self.source.fingerprint, self.storage)

    def stages(self) -> Stages:
        """Return what makes the artifacts."""
        return Stages(self.config, self.source, self.storage)

    def is_finished(self) -> bool:
        """Return whether all artifacts are made."""
        known = self.locations()
        made = {stage for stage, location in known.items() if (location / MANIFEST).exists()}
        made |= {"labels"} if self.config.labels.mode == "stream" else set()
        return made == upstream(self.config).keys()


def run(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages and write the run directory; what is finished already is used as it is.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for what the user can mend, in one line.
    """
    start = time.monotonic()
    storage = Location.of(config.storage, "storage")
    check_same_run(config, storage / config.name, overwrite)
    this = Run.of(config)
    check_storage(storage, label_bytes_to_write(config, this.source, this.locations()))
    storage = Location.of(config.storage, "storage")  # it is there now, and waited for from here on
    this = replace(this, storage=storage)
    with explained(storage), locked(this.directory, config.name):
        check_same_run(config, this.directory, overwrite)  # again: it may be new since the wait
        if not this.is_finished():
            this = replace(this, config=connect(config))
            preflight(this.config)
        this.directory.make_dir()
        settings = yaml.safe_dump(config.to_dict(), sort_keys=False)
        (this.directory / "config.yaml").write_text(settings)
        artifacts = this.stages().all()
        return write_run(this.config, this.directory, artifacts, time.monotonic() - start)
