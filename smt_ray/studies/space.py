"""What a sweep varies: fields of a run, each with a list of values or a range.

On the command line a field's part of the space is `FIELD=VALUES`, with VALUES `a,b,c`, `a..b`
(uniform) or `log:a..b` (uniform in the logarithm); a range includes both ends, and whole numbers
stay whole.
"""

import difflib
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smt_ray.config import RunConfig, leaves, masked
from smt_ray.data.fields import read_fields

Fields = dict[str, Any]
"""Dotted fields with the values that one trial gives them."""

FIXED = ("name", "storage", "preset", "runtime.")
"""Beginnings of the fields that decide nothing about a result."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A field with the values it takes."""

    field: str
    values: tuple[Any, ...]

    def draw(self, source: random.Random) -> Any:
        """Return one of the values."""
        return source.choice(self.values)

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.field}={','.join(map(str, self.values))}"


@dataclass(frozen=True, slots=True)
class Range:
    """A field with the bounds of its values, whole numbers if the bounds are."""

    field: str
    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int)

    def draw(self, source: random.Random) -> Any:
        """Return a value, every whole one as likely as its share of the range."""
        room = 0.5 if self.whole else 0.0
        low, high = self.low - room, self.high + room
        drawn = (
            math.exp(source.uniform(math.log(low), math.log(high)))
            if self.log
            else source.uniform(low, high)
        )
        return min(max(round(drawn) if self.whole else drawn, self.low), self.high)

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.field}={'log:' if self.log else ''}{self.low}..{self.high}"


Space = tuple[Choice | Range, ...]


def parse_space(texts: Sequence[str], file: str = "") -> Space:
    """Read the space from `FIELD=VALUES` texts, and from a YAML file of fields before them.

    Raises:
        ValueError: in one line that begins with `space=`, for an unknown field or a bad value.
    """
    parts = dict(_read(file)) if file else {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"space={text}: must be FIELD=VALUES, as model.memory-tokens=4,8,16")
        field = name.strip().replace("_", "-")
        if parts.get(field, values) != values:
            raise ValueError(f"space={field}: is given twice; give it once")
        parts[field] = values
    if not parts:
        raise ValueError("space=: is empty; give --space FIELD=VALUES, or --space-file FILE")
    return tuple(_part(field, values) for field, values in parts.items())


def grid(space: Space) -> Iterator[Fields]:
    """Yield every combination of the values, the last field's fastest.

    Raises:
        ValueError: if a part of the space is a range.
    """
    axes = []
    for part in space:
        if isinstance(part, Range):
            raise ValueError(
                f"space={part}: a grid takes lists of values, as {part.field}="
                f"{part.low},{part.high}; or give --search random, or optuna"
            )
        axes.append([(part.field, value) for value in part.values])
    yield from map(dict, itertools.product(*axes))


def draws(space: Space, count: int, seed: int) -> list[Fields]:
    """Return `count` combinations drawn at random; a larger count begins with the same ones."""
    source = random.Random(seed)
    return [{part.field: part.draw(source) for part in space} for _ in range(count)]


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted fields as nested mappings, as `RunConfig.update` takes them."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        *above, last = name.split(".")
        inner = found
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return found


def written(fields: Mapping[str, Any]) -> str:
    """Return fields in one line."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in fields.items()
    )


def _part(field: str, values: Any) -> Choice | Range:
    known = {
        name: type(value)
        for name, value in leaves(RunConfig()).items()
        if not name.startswith(FIXED)
    }
    if field not in known:
        near = difflib.get_close_matches(field, list(known), n=1, cutoff=0.0)[0]
        unknown = "decides nothing about a result" if field.startswith(FIXED) else "unknown field"
        raise ValueError(f"space={field}: {unknown}; did you mean {near}?")
    kind = known[field]
    text = str(values)
    if isinstance(values, str) and ".." in text and kind in {int, float}:
        return _range(field, kind, text)
    if masked(text) != text:
        raise ValueError(
            f"space={field}={masked(text)}: has credentials, which are not recorded; leave them "
            "to the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    words = map(str, values) if isinstance(values, list) else text.split(",")
    found = dict.fromkeys(_value(field, kind, word.strip()) for word in words)
    if not found:
        raise ValueError(f"space={field}: has no value; give one or more")
    return Choice(field, tuple(found))


def _range(field: str, kind: Any, text: str) -> Range:
    log = text.startswith("log:")
    low, high = (_value(field, kind, end) for end in text.removeprefix("log:").split("..", 1))
    if not low < high:
        raise ValueError(f"space={field}={text}: must rise from its first bound to its second")
    if log and low <= 0:
        raise ValueError(f"space={field}={text}: a logarithmic range must begin above 0")
    return Range(field, low, high, log)


def _value(field: str, kind: Any, text: str) -> Any:
    """Return one value, of the field's type."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError(text)
    except (KeyError, ValueError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"space={field}={text}: must be {kinds[kind]}") from None
    return value


def _read(file: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted fields of a YAML file, nested or not."""
    values = read_fields(file, "space-file", "model.width: [32, 64]")
    yield from _flat(values, "")


def _flat(values: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = prefix + str(key).replace("_", "-")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
