"""The project's log lines: to stderr, as they are, without credentials."""

import logging

from smt_ray.config import masked


def configure_logging() -> None:
    """Send the project's log lines to stderr as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Masking("%(message)s"))
    root = logging.getLogger("smt_ray")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)


class _Masking(logging.Formatter):
    """Masks the credentials of URIs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines where there is a traceback."""
        return masked(super().format(record))


def duration(seconds: float) -> str:
    """Return a time as `4.2 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
