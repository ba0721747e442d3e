"""The command line of the jobs: a preset, a configuration file, and a flag for every field.

`--help` shows what most users set, `--help-all` every field.

Whatever the user can mend is reported in one line, with exit status 2.
"""

import contextlib
import difflib
import io
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import tyro

from smt_ray.cluster.interruption import handled
from smt_ray.config import RunConfig, leaves, masked
from smt_ray.config.presets import PRESETS
from smt_ray.data.fields import read_fields
from smt_ray.pipeline.short_help import short_help

Flags = TypeVar("Flags")
Run = TypeVar("Run", bound="Options")
logger = logging.getLogger(__name__)
GOES_ON = "; the same command goes on from here"
"""Advice to whoever stops a job that keeps what it has finished."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, and how."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """The run."""
    config: str = ""
    """YAML file of fields that replace the preset's; the `config.yaml` of a run is one."""
    overwrite: bool = False
    """Let this name point at a run with other settings; nothing that is finished is deleted."""
    plan: bool = False
    """Print parameters, label bytes and memory of a worker, then stop."""


def parse_run(
    arguments: Sequence[str],
    description: str,
    preset: Callable[..., RunConfig],
    short: Mapping[str, str] | None = None,
    kind: type[Run] = Options,  # type: ignore[assignment]
) -> Run:
    """Parse `[PRESET] [--config FILE] [--FIELD VALUE ...]`.

    The preset may be named by the first argument, by --preset or by the file. `--help` and
    `--help-all` print and exit.

    Args:
        arguments: the words of the command line.
        description: what the job does, for --help.
        preset: makes the run that file and flags change, given the preset's name and, where file
            or flags give them, `source` and `sequence_length`: what is sensible depends on them.
        short: flags of the job's own, each with the beginning of the argument that `FLAG VALUE`
            stands for, as `{"--task": "--data.source=task:"}`.
        kind: the options that there are.

    Raises:
        ValueError: in one line, for an unknown preset, file, flag or a bad value.
    """
    arguments = _expanded(arguments, short or {})
    first = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    file = value_of(arguments, "--config")
    values = read_fields(file, "config", "model: {width: 64}") if file else {}
    name = _preset_of(first, value_of(arguments, "--preset"), file, values.get("preset"))
    base = preset(name, **_given(arguments, values)).update(values)
    default = kind(run=base, config=file)
    if {"--help", "-h"} & {*arguments}:
        sys.stdout.write(short_help(description, default) + "\n")
        raise SystemExit(0)
    lines = [f"  {name}: {about}" for name, about in PRESETS.items()]
    text = f"{description}\n\nThe first argument may name a PRESET:\n" + "\n".join(lines)
    arguments = ["--help" if word == "--help-all" else word for word in arguments]
    return parse(kind, arguments, text, default=default)


def parse(
    kind: type[Flags], arguments: Sequence[str], description: str, default: Flags | None = None
) -> Flags:
    """Parse flags into a dataclass; `--help` prints and exits.

    Raises:
        ValueError: in one line, for an unknown flag, a missing one or a bad value.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, unknown = tyro.cli(
                kind,
                args=list(arguments),
                default=tyro.MISSING_NONPROP if default is None else default,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise ValueError(_first_line(said.getvalue())) from None
    if unknown:
        known = [f"--{name}" for name in _flags(options)]
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        raise ValueError(f"{unknown[0]}: unknown argument; did you mean {near[0]}?")
    return options


@contextlib.contextmanager
def reported(advice: str = "") -> Iterator[None]:
    """Turn a user's error into one line on standard error and exit status 2.

    SIGTERM and Ctrl-C become a line too, which ends in `advice`, and exit statuses 143 and 130.
    """
    try:
        with handled(advice):
            yield
    except ValueError as error:
        logger.error("error: %s", masked(error))  # to stderr, whether logging is configured or not
        raise SystemExit(2) from None


def _preset_of(first: str, flag: str, file: str, value: object) -> str:
    """Return the name of the preset, wherever it is given; `tiny` where it is not."""
    given = {"the first argument": first, "--preset": flag, f"config={file}": value}
    names = {place: name for place, name in given.items() if name}
    for place, name in names.items():
        if name not in PRESETS:
            where = f", in {place}" if place.startswith("config") else ""
            raise ValueError(f"preset={name!r}{where}: must be one of {', '.join(PRESETS)}")
    if len(set(names.values())) > 1:
        said = ", ".join(f"{name} by {place}" for place, name in names.items())
        raise ValueError(f"preset: is {said}; give one of them")
    return str(next(iter(names.values()), "tiny"))


def _flags(options: object) -> list[str]:
    return [name.removeprefix("run.") for name in leaves(options)]


def _expanded(arguments: Sequence[str], short: Mapping[str, str]) -> list[str]:
    """Write the job's own flags out."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        flag, _, value = word.partition("=")
        if flag in short:
            value = value or next(rest, "")
            if not value:
                raise ValueError(f"{flag}: needs a value")
            word = short[flag] + value
        words.append(word)
    return words


def value_of(arguments: Sequence[str], flag: str) -> str:
    """Find the last value of a flag before the others are parsed; "" if it is not there."""
    found = ""
    for word, after in itertools.pairwise([*arguments, ""]):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else after
    return found


def _given(arguments: Sequence[str], values: Mapping[str, object]) -> dict[str, Any]:
    """Return source and length where a flag or else the file gives one that can be right."""
    data = values.get("data")
    fields = (
        {str(name).replace("-", "_"): value for name, value in data.items()}
        if isinstance(data, Mapping)
        else {}
    )
    source = value_of(arguments, "--data.source") or fields.get("source")
    length = value_of(arguments, "--data.sequence-length") or fields.get("sequence_length")
    given: dict[str, Any] = {"source": source} if source and isinstance(source, str) else {}
    if str(length).isdecimal():
        given["sequence_length"] = int(str(length))
    return given


def _first_line(box: str) -> str:
    """Return what tyro's framed message says, on one line."""
    rows = [row.strip("\u2502 ") for row in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    text: list[str] = []
    for row in rows:
        if text and row.startswith(("\u2500", "\u2570")):
            break
        if row and not row.startswith(("\u256d", "\u2500")):
            text.append(row)
    line = re.sub(r"^Error parsing [\w.-]*: (?=\S+=)", "", " ".join(text))
    return re.sub(r"^Missing from \S+: ", "missing: ", line)
