"""The command line of a sweep: that of the training jobs, and what is varied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import tyro
import yaml

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.pipeline.command_line import Options, parse_run, value_of
from smt_ray.pipeline.recipes import on_source
from smt_ray.report.ranking import METRICS
from smt_ray.studies.space import Fields, nested

SHORT = {"--task": "--data.source=task:", "--length": "--data.sequence-length="}
ABOUT = """Sweep any field of a run with Ray Tune: memory size, encoder depth, and whatever else.

Each trial is a run of the pipeline, named SWEEP-TRIAL. Trials that agree in what a stage depends on
share its artifact: those that differ in the RNN's own cell (--transition.cell, .cell-depth), in DMT
or in what comes after the labels have ONE teacher and ONE label set; model.cell is also the
teacher's, and changes both."""
RECORD = "sweep.yaml"
"""File in the sweep's directory that says what it is."""
ONCE = ("--resume", "--overwrite")
"""Flags that are not for the next call."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """What to vary, and how; every other field holds for all trials."""

    space: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUES, once for each field that is swept: `model.memory-tokens=4,8,16`,
    `dmt.visits=4..16` (uniform), `teacher.learning-rate=log:1e-4..1e-2`."""
    space_file: str = ""
    """YAML file of such fields, each with a list or a range, before those of --space."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid`: every combination of lists; `random`: independent draws; `optuna`: draws that learn
    from the trials before them (TPE)."""
    trials: int = 16
    """Trials of a random or an optuna search; more of them extend a finished sweep."""
    metric: str = ""
    """Figure of summary.json by which trials are ordered; empty: rnn_bits, of a task
    rnn_accuracy."""
    concurrent: int = 0
    """Trials at once, at most; 0: as many as the cluster has CPUs and GPUs for."""
    early_stop: bool = True
    """Stop a trial whose teacher is behind (ASHA): at a quarter, a half and the end of its training
    it must be in the better half by the cross-entropy of the next target, `validation/dense` (of
    the bidirectional encoder `validation/dec`). In a grid the default is not to."""
    resume: bool = False
    """Go on with the sweep of this --name and --storage; other flags need not be given again.
    Finished and stopped trials are kept, failed ones are run again."""
    overwrite: bool = False
    """Let this name point at another sweep; no artifact is deleted."""
    plan: bool = False
    """Print the trials, and how many teachers and label sets they share; then stop."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name, least in (("trials", 1), ("concurrent", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be >= {least}")
        if self.metric and self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r}: must be one of {', '.join(METRICS)}")
        if self.resume and self.overwrite:
            raise ValueError("overwrite=True: begins anew what --resume goes on with; give one")

    @property
    def ordered_by(self) -> str:
        """The metric, also where it is left to the source."""
        return self.metric or ("rnn_accuracy" if self.run.data.kind == "task" else "rnn_bits")


class Sweeper:
    """A parsed command line: its options, and the run that any trial's fields make of it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Parse `[PRESET] --space FIELD=VALUES ... [--FIELD VALUE ...]`.

        Raises:
            ValueError: in one line, for an unknown preset, file, flag or a bad value.
        """
        self.arguments = _recorded(arguments)
        self._runs: dict[tuple[Any, ...], RunConfig] = {}
        self.options = self._parse(())

    def _parse(self, more: Sequence[str]) -> SweepOptions:
        words = [*self.arguments, *more]
        early = value_of(words, "--search") in {"random", "optuna"}
        kind = _Grid if not early else SweepOptions
        return parse_run(words, ABOUT, _preset, SHORT, kind)

    def configure(self, fields: Fields) -> RunConfig:
        """Return the run of a trial: presets depend on a source and a length that are swept, too.

        Raises:
            ValueError: if its fields do not fit each other.
        """
        shape = {
            name: fields[name] for name in ("data.source", "data.sequence-length") if name in fields
        }
        key = tuple(shape.items())
        if key not in self._runs:
            words = [f"--{name}={value}" for name, value in shape.items()]
            self._runs[key] = self._parse(words).run
        return self._runs[key].update(nested(fields))


@dataclass(frozen=True, kw_only=True)
class _Grid(SweepOptions):
    early_stop: bool = False


def _preset(name: str, **given: Any) -> RunConfig:
    run = on_source(name, **given)
    return replace(run, name=f"{run.name}-sweep")


def _recorded(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, before them those that a sweep to be resumed was started with."""
    words = list(arguments)
    if "--resume" not in words or any(word.startswith("--space") for word in words):
        return words
    storage, name = value_of(words, "--storage") or "./runs", value_of(words, "--name")
    if not name:
        raise ValueError("resume=True: needs the --name of the sweep to go on with")
    record = Location.of(storage) / name / RECORD
    if not record.exists():
        raise ValueError(f"resume=True: there is no sweep {name!r} in storage={storage}")
    before = [str(word) for word in read_record(record)["arguments"]]
    if words and not words[0].startswith("-"):
        before = [words.pop(0), *(before[1:] if not before[0].startswith("-") else before)]
    return [*before, *words]


def read_record(file: Location) -> dict[str, Any]:
    """Return what a sweep's record says: its `arguments` and its `identity`.

    Raises:
        ValueError: in one line that names the file, if it is damaged.
    """
    mend = "give the sweep's own command with --overwrite to write it anew"
    try:
        record = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise file.damaged(error, mend) from error
    if not isinstance(record, dict) or not {"arguments", "identity"} <= record.keys():
        raise file.damaged("it has no arguments and identity", mend)
    return record
