"""What a storage refuses in the middle of a run, wherever it was met, becomes one line."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray.train
from ray.exceptions import RayError

from smt_ray.config import masked
from smt_ray.data.patience import SILENT
from smt_ray.data.storage import Location

GOES_ON = "the same command goes on"
LASTING = {
    errno.ENOSPC: ("no space left", f"free some, {GOES_ON}"),
    errno.EDQUOT: ("the quota is used up", f"free some or raise it, {GOES_ON}"),
    errno.EROFS: ("it has become read-only", f"make it writable, {GOES_ON}"),
    errno.EACCES: ("not writable any more", f"make it writable, {GOES_ON}"),
    errno.EPERM: ("not writable any more", f"make it writable, {GOES_ON}"),
}
"""What it is and what helps; to try again does not."""
AWAY = "it does not answer", f"when it does, {GOES_ON}"
PASSING = dict.fromkeys(SILENT, AWAY)
"""What may pass, and was tried again before it is an error."""
_NUMBER = re.compile(r"\[?(?:[Ee]rrno|os error) (\d+)")
_REMOTE = re.compile(r"AWS Error [^\n]*|google::cloud[^\n]*|Azure[^\n]* [Ee]rror[^\n]*")
_REMOTE_AWAY = re.compile(
    "SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION"
    r"|HTTP status (?:5\d\d|429)"
)


@contextmanager
def explained(storage: Location) -> Iterator[None]:
    """Turn what the storage refuses, here or on any worker, into a `ValueError` in one line.

    A `ValueError` of a worker becomes one of its line alone.
    """
    try:
        yield
    except (OSError, RayError, ray.train.TrainingFailedError) as error:
        said = user_error(error) or refusal(error, storage)
        if not said:
            raise
        raise ValueError(said) from error


def is_lasting(error: BaseException) -> bool:
    """Return whether a file system refused what it would refuse again."""
    return any(_number(part) in LASTING for part in _parts(error))


def refusal(error: BaseException, storage: Location) -> str:
    """Return what the storage refused, and what helps, in one line; "" if that was not it."""
    for part in _parts(error):
        number = _number(part)
        if number == errno.ENOSPC:
            return f"{_full(storage)}: no space left (errno {number}); {LASTING[number][1]}"
        if number in LASTING | PASSING and storage.path in str(part):
            reason, mend = (LASTING | PASSING)[number]
            return f"storage={storage}: {reason} ({_one_line(part)}); {mend}"
        if number == errno.ENOENT and not storage.exists():
            return f"storage={storage}: it is gone; when it is back, {GOES_ON}"
        if not storage.is_local and (remote := _REMOTE.search(str(part))):
            reason, mend = "refused", f"mend that, {GOES_ON}"
            if _REMOTE_AWAY.search(remote[0]):
                reason, mend = AWAY
            return f"storage={storage}: {reason} ({_one_line(remote[0])}); {mend}"
    return ""


def user_error(error: BaseException) -> str:
    """Return the line of the `ValueError` that a task or worker has raised; "" if it was none."""
    inner = [part for part in _parts(error) if not isinstance(part, RayError)]
    return next((_one_line(part) for part in inner if isinstance(part, ValueError)), "")


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, and those that Ray has wrapped in it."""
    yield error
    inner = [error.__cause__, getattr(error, "cause", None)]
    inner += [getattr(error, "controller_failure", None)]
    inner += getattr(error, "worker_failures", {}).values()
    for part in inner:
        if isinstance(part, BaseException):
            yield from _parts(part)


def _number(error: BaseException) -> int | None:
    """Return the system's number of an error, which others may have made text of."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None


def _full(storage: Location) -> str:
    """Return the field of what is full: the storage, or where temporary files go."""
    temporary = Location.of(tempfile.gettempdir())
    full = min((storage, temporary), key=Location.free_bytes)
    return f"storage={storage}" if full is storage else f"TMPDIR={temporary}"


def _one_line(error: object) -> str:
    return " ".join(masked(error).split())[:300]
