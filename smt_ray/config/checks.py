"""Checks of single values; an error names the field as it is typed, its value and the rule."""

import math


def require(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise `ValueError` with the field, the value and the rule unless `ok`."""
    if not ok:
        raise ValueError(f"{name}={value}: {rule}")


def at_least(minimum: float, prefix: str, config: object, *names: str) -> None:
    """Require each of the fields `names` of `config` to be finite and >= `minimum`."""
    for name in names:
        value = getattr(config, name)
        require(value != math.inf, f"{prefix}.{flag(name)}", value, "must be finite")
        require(value >= minimum, f"{prefix}.{flag(name)}", value, f"must be >= {minimum:g}")


def flag(name: str) -> str:
    """Return a field's name as it is typed on the command line."""
    return name.replace("_", "-")
