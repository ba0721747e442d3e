"""File systems that wait for a storage which is gone for a while, instead of giving up.

Whoever uses them waits: a `Location`, and Ray Train, which writes checkpoints with the same object.
What would be refused again (no such file, no permission, no space) is raised at once.
"""

import errno
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from pyarrow import fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_exponential

Result = TypeVar("Result")
SILENT = frozenset(
    (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH)
)
"""What a mounted storage says while its server is away."""
PATIENCE_S = 60.0
"""Seconds for which a call on a local or mounted storage is tried again."""
LONGEST_S = 5.0
"""Seconds between two tries, at most."""
S3_RETRIES = 11
"""The SDK waits 25 ms before the first and twice as long before each next one: 51 s in all."""

logger = logging.getLogger(__name__)
_given_up: set[str] = set()
"""Storages that were waited for in vain; they are not waited for again until they answer."""


def patiently(call: Callable[..., Result], *arguments: Any, root: str = "") -> Result:
    """Return `call(*arguments)`, tried again while the storage is gone.

    Args:
        call: what can be done more than once.
        *arguments: its arguments.
        root: a directory that was there; while it is gone, nothing in it can be missing.

    Raises:
        OSError: the last one, when `PATIENCE_S` are over; at once what would be refused again.
    """

    def attempt() -> Result:
        _require(root)
        return call(*arguments)

    def passes(error: BaseException) -> bool:
        return _may_pass(error, root) and root not in _given_up

    def said(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            error = state.outcome.exception() if state.outcome else None
            logger.warning("storage does not answer, trying for %d s: %s", PATIENCE_S, error)

    tries = Retrying(
        retry=retry_if_exception(passes),
        stop=stop_after_delay(PATIENCE_S),
        wait=wait_exponential(multiplier=0.1, max=LONGEST_S),
        before_sleep=said,
        reraise=True,
    )
    try:
        result = tries(attempt)
    except OSError as error:
        if root and _may_pass(error, root):
            _given_up.add(root)
        raise
    _given_up.discard(root)
    return result


def _may_pass(error: BaseException, root: str) -> bool:
    if not isinstance(error, OSError):
        return False
    gone = error.errno == errno.ENOENT and bool(root) and not os.path.isdir(root)
    return gone or error.errno in SILENT


def _require(root: str) -> None:
    if root and not os.path.isdir(root):
        raise FileNotFoundError(errno.ENOENT, "the storage is gone", root)


class PatientLocal(fs.LocalFileSystem):  # type: ignore[misc]
    """Local and mounted files. While the directory `root` is gone, nothing is made in its place."""

    def __init__(self, root: str = "") -> None:
        """Wait for `root`, which is there now; without one only for what does not answer."""
        super().__init__()
        self.root = root

    def __reduce__(self) -> Any:
        return PatientLocal, (self.root,)

    def _patiently(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return patiently(call, *arguments, root=self.root)

    def get_file_info(self, paths_or_selector: Any) -> Any:
        """See `FileSystem`; whether `root` itself is there is told at once."""
        ask = super().get_file_info
        if paths_or_selector == self.root:
            return patiently(ask, paths_or_selector)

        def asked() -> Any:
            found = ask(paths_or_selector)
            _require(self.root)  # else it may be missing because all is
            return found

        return self._patiently(asked)

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        """See `FileSystem`."""
        make = super().create_dir
        self._patiently(lambda: make(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        """See `FileSystem`."""
        self._patiently(super().delete_dir, path)

    def delete_file(self, path: str) -> None:
        """See `FileSystem`."""
        self._patiently(super().delete_file, path)

    def move(self, src: str, dest: str) -> None:
        """See `FileSystem`."""
        self._patiently(super().move, src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """See `FileSystem`."""
        self._patiently(super().copy_file, src, dest)

    def open_input_file(self, path: str) -> Any:
        """See `FileSystem`."""
        return self._patiently(super().open_input_file, path)

    def open_input_stream(self, path: str, *options: Any, **more: Any) -> Any:
        """See `FileSystem`."""
        opened = super().open_input_stream
        return self._patiently(lambda: opened(path, *options, **more))

    def open_output_stream(self, path: str, *options: Any, **more: Any) -> Any:
        """See `FileSystem`."""
        opened = super().open_output_stream
        return self._patiently(lambda: opened(path, *options, **more))


class PatientS3(fs.S3FileSystem):  # type: ignore[misc]
    """S3 whose requests are tried again, by a role that may know no more than its own prefix.

    A pickled `S3FileSystem` loses its retry strategy; this one keeps it.
    """

    def __init__(self, **options: Any) -> None:
        """Take the options of `S3FileSystem` but for its retry strategy.

        The default strategy stops early: its wait is random, and all requests of a process share
        a budget of retries.
        """
        strategy = fs.AwsDefaultS3RetryStrategy(max_attempts=S3_RETRIES)
        super().__init__(retry_strategy=strategy, **options)

    @classmethod
    def like(cls, other: fs.S3FileSystem) -> "PatientS3":
        """Return a patient one with the options of `other`: keys, endpoint, scheme and so on."""
        return cls(**other.__reduce__()[1][0])

    def __reduce__(self) -> Any:
        return _patient_s3, super().__reduce__()[1]

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        """Create the bucket and directories as far as that is allowed: objects need neither."""
        try:
            super().create_dir(path, recursive=recursive)
        except OSError as error:
            if not _is_denied(error):
                raise

    def delete_dir(self, path: str) -> None:
        """See `FileSystem`; who is denied what it asks before deletes file by file."""
        try:
            super().delete_dir(path)
        except OSError as error:
            if not _is_denied(error):
                raise
            below = fs.FileSelector(path, allow_not_found=True, recursive=True)
            for found in super().get_file_info(below):
                if found.is_file:
                    super().delete_file(found.path)

    def get_file_info(self, paths_or_selector: Any) -> Any:
        """See `FileSystem`; who may not list a bucket is told 403 of what is not there, not 404."""
        try:
            return super().get_file_info(paths_or_selector)
        except OSError as error:
            if not isinstance(paths_or_selector, str) or not _is_denied(error):
                raise
            path, parent = paths_or_selector.rstrip("/"), paths_or_selector.rpartition("/")[0]
            listed = super().get_file_info(fs.FileSelector(parent, allow_not_found=True))
            there = {found.path: found for found in listed}
            return there.get(path, fs.FileInfo(path, fs.FileType.NotFound))


def _patient_s3(options: dict[str, Any]) -> PatientS3:
    return PatientS3(**options)


def _is_denied(error: OSError) -> bool:
    return "ACCESS_DENIED" in str(error) or "HTTP status 403" in str(error)


def patient(filesystem: fs.FileSystem, path: str = "") -> fs.FileSystem:
    """Return a file system that waits, for one that does not.

    Args:
        filesystem: of any kind; what has a patience of its own is returned as it is.
        path: the place for which it is made. A local directory that is there now is waited for.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return PatientLocal(path if os.path.isdir(path) else "")
    if isinstance(filesystem, fs.S3FileSystem):
        return PatientS3.like(filesystem)
    return filesystem
