"""Nested mappings to configurations and back."""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from smt_ray.config.checks import flag, require


def merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with nested `values` in its place, dashes in names as underscores."""
    merged = dict(base)
    for key, value in values.items():
        name = str(key).replace("-", "_")
        inner = merged.get(name)
        merged[name] = (
            merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
        )
    return merged


def build(cls: Any, values: Any, prefix: str) -> Any:
    """Build a dataclass from nested mappings, checking names and types."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{prefix.rstrip('.') or 'config'}={values!r}: must be a mapping of fields"
        )
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        dotted = f"{prefix}{flag(name)}"
        if name not in hints:
            near = difflib.get_close_matches(name, list(hints), n=1, cutoff=0.0)
            raise ValueError(f"{dotted}: unknown field; did you mean {prefix}{flag(near[0])}?")
        kind = hints[name]
        arguments[name] = (
            build(kind, value, f"{dotted}.") if is_dataclass(kind) else _coerce(kind, value, dotted)
        )
    return cls(**arguments)


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as `kind`: a number also of its text, a whole one also of 64.0."""
    if isinstance(value, Mapping):
        raise ValueError(
            f"{name}: is a single value, it has no fields such as {next(iter(value), '')!r}"
        )
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:  # a number, or a word for one
        number, word = typing.get_args(kind)
        if value in typing.get_args(word):
            return value
        if word is str:  # its configuration knows which
            return _number(number, value)
        words = ", ".join(map(repr, typing.get_args(word)))
        value = _number(number, value)
        require(type(value) is number, name, repr(value), f"{_WANTED[number]}, or {words}")
        return value
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        value = _number(int, value) if type(choices[0]) is int else value
        known = any(value == choice and type(value) is type(choice) for choice in choices)
        require(known, name, repr(value), f"must be one of {', '.join(map(str, choices))}")
        return value
    if kind in {int, float}:
        value = _number(kind, value)
    require(type(value) is kind, name, repr(value), _WANTED[kind])
    return value


_WANTED = {
    bool: "must be true or false",
    int: "must be a whole number",
    float: "must be a number",
    str: "must be text; put it in quotes",
}


def _number(kind: Any, value: Any) -> Any:
    """Return an obvious number as one of `kind`, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        if kind is float:
            return float(value)
        number: float = value if not isinstance(value, str) else _parsed(value)
        return int(number) if number == int(number) else value
    except (ValueError, OverflowError):
        return value


def _parsed(text: str) -> float:
    return float(text) if set(text.lower()) & {".", "e"} else int(text)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return all fields of a dataclass as {dotted-flag: value}, nested ones included."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        name = f"{prefix}{flag(item.name)}"
        found |= leaves(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


def changed(config: Any) -> dict[str, Any]:
    """Return the nested fields of a dataclass that are not at their default.

    So a field that is added later, with a default that changes nothing, is not among them.
    """
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            if inner := changed(value):
                found[item.name] = inner
        elif value != item.default:
            found[item.name] = value
    return found
