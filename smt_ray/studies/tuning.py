"""A sweep: trials of the pipeline under Ray Tune, what they share made once, the best one kept.

`<storage>/<name>/` holds `sweep.yaml` (what the sweep is), `trials/` (what became of each), and at
the end `sweep.csv`, `summary.json`, `report.html`, `best.yaml` and the best trial's `rnn/`.
"""

import logging
import os
import time
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from smt_ray.cluster import interruption
from smt_ray.cluster.cpus import usable_cpus
from smt_ray.cluster.interruption import Stopped
from smt_ray.cluster.monitor import stop_trainings
from smt_ray.cluster.refusals import explained
from smt_ray.cluster.resources import cpus_needed, gpus_needed, here, processes, resolved
from smt_ray.cluster.session import check_storage, connect, preflight
from smt_ray.config import RunConfig, anonymous, leaves, masked, on_texts
from smt_ray.data.storage import Location
from smt_ray.pipeline.artifacts import MANIFEST
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.recipes import JOBS
from smt_ray.pipeline.run_directory import RUNTIME, read_config
from smt_ray.report.leaderboard import csv_text, sweep_page
from smt_ray.report.ranking import Entry, best
from smt_ray.report.study_page import write_study
from smt_ray.studies.options import ONCE, RECORD, Sweeper, read_record
from smt_ray.studies.search import Search, Suggestions
from smt_ray.studies.space import draws, grid, parse_space, written
from smt_ray.studies.trainable import BITS, STEP, follow
from smt_ray.studies.trials import Planner, Records, Trial, distinct, in_turn, on_one_gpu

logger = logging.getLogger(__name__)
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its reporter prints, whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # what a trial reports last is not a validation
}
KEPT_HALF = 2
"""ASHA stops the half of the trials that is behind."""
SAVE_S = 30.0
"""Longest wait, in seconds, for the checkpoints of the trials when the sweep is stopped."""
RUNGS = 4
"""The first comparison is after this part of the teacher's training: a quarter, then a half."""


class Sweep:
    """One sweep, from its command line to what it leaves."""

    def __init__(self, sweeper: Sweeper) -> None:
        """Check all that is known before any work.

        Raises:
            ValueError: in one line, for what the user can mend.
        """
        self.sweeper, options = sweeper, sweeper.options
        self.options, self.run_config = options, options.run
        self.space = parse_space(options.space, options.space_file)
        self.metric = options.ordered_by
        self.storage = Location.of(options.run.storage, "storage")
        self.directory = self.storage / options.run.name
        self.records = Records(self.directory / "trials")
        self.planner = Planner(options.run.name, sweeper.configure)
        self._check_same()
        self.trials = self._planned()

    def _planned(self) -> list[Trial]:
        """Return the trials that are known before any has run: of Optuna's, those begun before."""
        options, planner = self.options, self.planner
        if options.search == "grid":
            return planner.trials(grid(self.space))
        if options.search == "random":
            return planner.trials(draws(self.space, options.trials, options.run.seed))
        self.sweeper.configure({})
        begun = [] if options.overwrite else self.records.all()
        open_ = [entry for entry in begun if entry.status in {"running", "failed"}]
        return [planner.trial(int(e.id), dict(e.fields)) for e in open_ if e.stages]

    @property
    def total(self) -> int:
        """How many trials there are to be."""
        return self.options.trials if self.options.search == "optuna" else len(self.trials)

    def _check_same(self) -> None:
        """Refuse to go on with a sweep under other settings, or with what is no sweep.

        Raises:
            ValueError: naming the first field that differs, unless `overwrite`.
        """
        record, name = self.directory / RECORD, self.options.run.name
        if (self.directory / "config.yaml").exists():
            raise ValueError(f"name={name!r}: is a run, not a sweep; choose another --name")
        if self.options.overwrite or not record.exists():
            if self.options.resume:
                raise ValueError(f"resume=True: there is no sweep {name!r} in {self.storage}")
            return
        before = read_record(record)
        for field, value in self._identity().items():
            if (old := before["identity"].get(field)) != value:
                raise ValueError(
                    f"{field}={value}: sweep {name!r} has {field}={old}; choose another --name, or "
                    "give --overwrite to begin another sweep under this one"
                )

    def _identity(self) -> dict[str, Any]:
        """Return what may not change under the sweep's name."""
        options = self.options
        known = on_texts(anonymous, leaves(options.run))
        fields = {k: v for k, v in known.items() if not k.startswith(RUNTIME)}
        own = {name: getattr(options, name) for name in ("search", "early_stop")}
        return {"space": [str(p) for p in self.space], "metric": self.metric, **own, **fields}

    def plan(self) -> str:
        """Describe the trials and what they share."""
        entries = [trial.entry for trial in self.trials]
        lines = [f"{trial.id}  {written(trial.entry.fields)}" for trial in self.trials]
        counts = [f"{words}: {len(distinct(entries, stage))}" for stage, words in _SHARED.items()]
        if self.options.search == "optuna":
            space = "\n".join(f"     {part}" for part in self.space)
            return f"{self.total} trials, suggested one after the other over\n{space}"
        return "\n".join([*lines, f"{len(entries)} trials; {', '.join(counts)}"])

    def run(self) -> dict[str, Any]:
        """Run what is not finished, and write what the sweep found; return its summary."""
        start = time.monotonic()
        check_storage(self.storage, 0)
        with explained(self.storage), locked(self.directory, self.options.run.name):
            self._check_same()  # again: it may be new since the wait
            self.trials = self._planned()
            return self._run(start)

    def _run(self, start: float) -> dict[str, Any]:
        if self.options.overwrite:
            self.records.clear()
        self.directory.make_dir()
        again = [masked(word) for word in self.sweeper.arguments if word not in ONCE]
        record = {"arguments": again, "identity": self._identity()}
        (self.directory / RECORD).write_text(yaml.safe_dump(record, sort_keys=False))
        done = {e.id for e in self.records.all() if e.status in {"finished", "stopped"}}
        left = [trial for trial in self.trials if trial.id not in done]
        logger.info("%d trials, of which %d are done", self.total, len(done))
        if any(part.field.startswith("model.cell") for part in self.space):
            logger.info(
                "model.cell* is also the teacher's: each of its values trains a teacher; "
                "sweep transition.cell* to share one"
            )
        if left or (self.options.search == "optuna" and len(self.records.all()) < self.total):
            with TemporaryDirectory(prefix="smt-ray-tune-") as scratch:
                self._tune(left, scratch)
        return self._write(time.monotonic() - start)

    def _tune(self, left: list[Trial], scratch: str) -> None:
        """Run the trials that are left; Tune keeps its own state in the directory `scratch`."""
        at_once = self._at_once()
        suggestions = None
        if self.options.search == "optuna":
            known, options = self.records.all(), self.options
            suggestions = Suggestions(
                self.space, self.metric, options.run.seed, self.planner, known
            )
        search = Search(
            in_turn(left),
            suggestions,
            self.total,
            self.metric,
            self.records,
            self.options.overwrite,
        )
        steps = max([self.run_config.teacher.steps, *(t.config.teacher.steps for t in left)])
        scheduler = ASHAScheduler(
            time_attr=STEP,
            metric=BITS,
            mode="min",
            max_t=steps,
            grace_period=max(1, steps // RUNGS),
            reduction_factor=KEPT_HALF,
            stop_last_trials=False,  # the teacher's last step is not the trial's
        )
        os.environ.update(ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        tuner = tune.Tuner(
            # A trial's own function only waits: one byte of memory stands for no resource at all.
            tune.with_resources(follow, {"memory": 1}),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler if self.options.early_stop else None,
                num_samples=-1,
                max_concurrent_trials=at_once,
                trial_name_creator=str,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            # Tune's state is of no use to a sweep that goes on, and has pickled settings.
            run_config=tune.RunConfig(name="tune", storage_path=scratch, verbose=0),
        )
        with interruption.saving(_stop):
            try:
                tuner.fit()
            except Stopped:
                name = self.options.run.name
                stop_trainings([f"{name}-{entry.id}" for entry in self.records.all()], SAVE_S)
                raise

    def _at_once(self) -> int:
        """Join or start Ray; return how many trials run at once.

        Raises:
            ValueError: if the cluster has no room for one.
        """
        asked = self.options.concurrent
        own = resolved(self.run_config, here())
        busy = processes(own) * own.runtime.threads
        connect(self.run_config, asked or max(1, usable_cpus() // busy))
        run = on_one_gpu(self.run_config)
        preflight(run)
        room = slots(ray.cluster_resources(), run)
        if asked > room:
            logger.info("concurrent=%d: the cluster has room for %d trials at once", asked, room)
        return min(asked or room, room)

    def _write(self, seconds: float) -> dict[str, Any]:
        """Write what the sweep found into its directory; return the summary."""
        entries, options = self.records.all(), self.options
        summary = {
            "name": options.run.name,
            "source": masked(options.run.data.source),
            "search": options.search,
            "metric": self.metric,
            "trials": len(entries),
            **{
                status: sum(entry.status == status for entry in entries)
                for status in ("finished", "stopped", "failed")
            },
            **{
                words.replace(" ", "_"): sum(map(self._made, distinct(entries, stage)))
                for stage, words in _SHARED.items()
            },
            "best": None,
            "wall_seconds": seconds,
        }
        winner, command = best(entries, self.metric), ""
        if winner:
            summary |= {"best": winner.id, f"best_{self.metric}": winner.score(self.metric)}
            command = self._keep(winner)
        (self.directory / "sweep.csv").write_text(csv_text(entries))
        (self.directory / "summary.json").write_json(summary)
        about = f"{options.search} search over {'; '.join(map(str, self.space))}"
        config = options.run.to_dict()
        page = sweep_page(
            summary, entries, self.metric, about=about, command=command, config=config
        )
        write_study(self.directory, page)
        return summary

    def _made(self, name: str) -> bool:
        return (self.storage / "artifacts" / name / MANIFEST).exists()

    def _keep(self, winner: Entry) -> str:
        """Copy the best trial's settings and RNN; return the command that makes its run again."""
        run = self.storage / f"{self.options.run.name}-{winner.id}"
        config, asked = read_config(run / "config.yaml"), self.run_config.runtime
        auto = {name: getattr(asked, name) for name in ("device", "workers", "gang_ranks")}
        config = config.update({"runtime": auto})  # a trial's numbers were for one GPU
        file = self.directory / "best.yaml"
        file.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            (run / "rnn" / name).copy_to((self.directory / "rnn").make_dir() / name)
        return f"python jobs/{JOBS[config.data.kind]}.py --config {file}"


def _stop() -> NoReturn:
    """Leave Tune at a signal, while the trials go on until each has saved."""
    logger.info("saving the trials' checkpoints; the same command goes on from there")
    raise Stopped(interruption.asked())


_SHARED = {"teacher": "teachers", "labels": "label sets"}


def slots(resources: dict[str, float], config: RunConfig) -> int:
    """Return how many runs fit on a cluster at once."""
    fit = int(resources.get("CPU", 0)) // cpus_needed(config)
    gpus = gpus_needed(config)
    return min(fit, int(resources.get("GPU", 0)) // gpus) if gpus else fit
