"""`--help` of a job: the flags that most users set, in groups, each with its default."""

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from smt_ray.config import leaves
from smt_ray.config.presets import PRESETS

WIDTH = 110
INDENT = 38
SHOWN: dict[str, tuple[str, ...]] = {
    "the run": ("name", "storage", "config", "overwrite", "plan", "seed"),
    "data": (
        "data.source",
        "data.tokenizer",
        "data.sequence-length",
        "data.text-field",
        "data.validation-fraction",
    ),
    "networks": (
        "model.width",
        "model.memory-tokens",
        "model.heads",
        "model.encoder-depth",
        "model.decoder-depth",
        "model.cell",
        "model.cell-depth",
    ),
    "teacher": (
        "teacher.steps",
        "teacher.global-batch",
        "teacher.learning-rate",
        "loss.horizon",
        "loss.timesteps",
        "loss.dynamics",
    ),
    "RNN": (
        "labels.mode",
        "labels.fraction",
        "transition.steps",
        "dmt.steps",
        "dmt.learning-rate",
        "dmt.depth",
        "finetune.steps",
        "bptt.steps",
    ),
    "machine": (
        "optimizer.precision",
        "runtime.device",
        "runtime.workers",
        "runtime.threads",
        "runtime.zero-stage",
        "runtime.micro-batch",
        "runtime.gangs",
        "runtime.gang-ranks",
    ),
}
"""Fields by group, in order."""


def short_help(description: str, options: Any) -> str:
    """Return the help.

    Args:
        description: what the job does.
        options: a job's options, `run` among them, with their defaults.
    """
    presets = "; ".join(f"{name} ({about})" for name, about in PRESETS.items())
    parts = [
        f"usage: [PRESET] [--FIELD VALUE ...]    --help-all lists every field\n\n{description}",
        textwrap.fill(f"PRESET is one of: {presets}.", WIDTH),
    ]
    values = {name.removeprefix("run."): value for name, value in leaves(options).items()}
    own = tuple(name for name in values if "." not in name and name not in _of_all(options))
    groups = SHOWN
    if own:
        parts.append("All fields of a run are flags, too: python jobs/pretrain_lm.py --help")
        groups = {"the job": own, "the run": SHOWN["the run"], "machine": SHOWN["machine"]}
    for title, names in groups.items():
        rows = [_row(name, values[name], help_of(options, name)) for name in names]
        parts.append("\n".join([f"{title}:", *rows]))
    return "\n".join(parts)


def help_of(options: Any, name: str) -> str:
    """Return the text under a field, on one line; `name` is dotted, as it is typed."""
    *groups, field = name.replace("-", "_").split(".")
    if not groups and field in {f.replace("-", "_") for f in leaves(options.run)}:
        groups = ["run"]
    elif groups:
        groups = ["run", *groups]
    config = options
    for group in groups:
        config = getattr(config, group)
    for kind in type(config).__mro__:
        text = _texts(kind).get(field) if kind is not object else None
        if text:
            return " ".join(text.split())
    raise AssertionError(f"{name} has no text")


def _of_all(options: Any) -> set[str]:
    """Return the fields without a group that every job has."""
    return {*SHOWN["the run"], *(name for name in leaves(options.run) if "." not in name)}


def _row(name: str, value: object, text: str) -> str:
    shown = "yes" if value is True else value
    default = "" if value is False or value in ("", ()) else f" [{shown}]"
    flag = f"  --{name}"
    body = textwrap.wrap(f"{text}{default}", WIDTH - INDENT, break_on_hyphens=False)
    first = f"{flag:<{INDENT}}" if len(flag) < INDENT else f"{flag}\n{'':<{INDENT}}"
    return first + f"\n{'':<{INDENT}}".join(body)


@cache
def _texts(kind: type) -> dict[str, str]:
    """Return the string under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(text.value, ast.Constant)
            found[field.target.id] = str(text.value.value)
    return found
