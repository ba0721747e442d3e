"""Credentials in URIs: what is written, logged or sent elsewhere has `***` in their place."""

import re
from collections.abc import Callable
from typing import Any

MASK = "***"
# `KEY:SECRET@` after `://`, but not `HOST:PORT/`; a `/` in a key that is not encoded included. A
# name alone stays: the container of `abfs://CONTAINER@ACCOUNT` says which data it is.
_LOGIN = re.compile(
    r"(://|%3A%2F%2F)(?![^\s/@]*:\d+/)[^\s/@'\"]*(?::|%3A)[^\s@'\"]*@", re.IGNORECASE
)
_NAMES = (
    r"secret|token|passw|signature|credential|\bsig\b|(?:access|account|api|private|shared)[-_]?key"
)
_QUERY = re.compile(rf"([?&;][^\s=&;'\"]*(?:{_NAMES})[^\s=&;'\"]*=)[^\s&;'\"]+", re.IGNORECASE)


def masked(text: object) -> str:
    """Return the text with the credentials of all URIs in it masked."""
    return _QUERY.sub(rf"\g<1>{MASK}", _LOGIN.sub(rf"\g<1>{MASK}@", str(text)))


def anonymous(text: object) -> str:
    """Return the text as it is where the environment has the credentials."""
    return masked(text).replace(f"://{MASK}@", "://")


def on_texts(change: Callable[[object], str], values: Any) -> Any:
    """Return nested mappings and lists with their texts changed."""
    if isinstance(values, dict):
        return {name: on_texts(change, value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(on_texts(change, value) for value in values)
    return change(values) if isinstance(values, str) else values


def require_unmasked(field: str, value: str) -> None:
    """Refuse a URI whose credentials were masked.

    Raises:
        ValueError: in one line that names the field.
    """
    if "://" in value and (f"://{MASK}@" in value or f"={MASK}" in value):
        name, flag = (f"{field}={value}", f"--{field}") if field else (value, "it")
        raise ValueError(
            f"{name}: its credentials were left out where it was written; give {flag} again, or "
            "without them and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
