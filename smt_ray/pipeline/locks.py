"""Locks: of all who could make a thing in one storage, one does, and the others wait for it.

A lock is a file beside the thing, `<thing>.lock`, that says who holds it; a thread of the holder
rewrites it every few seconds. A holder that died is found out: on its own machine at once, from
elsewhere when its file no longer changes. No two clocks are compared.
"""

import json
import logging
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil

from smt_ray.data.storage import Location

logger = logging.getLogger(__name__)
BEAT_S = 5.0
"""Between two rewrites of a lock's file."""
POLL_S = 1.0
"""Between two looks of one who waits."""
PATIENCE = 60
"""Looks in turn that must find the same file until a holder on another machine counts as dead."""
SETTLE_S = 2.0
"""After which, of those who wrote one file at once, all find the same winner in it."""
STARTED_S = 1.0
"""By how much two readings of one process's start may differ."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock: the content of its file."""

    run: str
    host: str
    pid: int
    started: float
    """When the process started, as psutil has it."""
    machine: str
    """Where process ids mean the same: a boot of a kernel, and a namespace of it."""
    since: str
    token: str
    """Of this lock alone."""
    beat: str
    """How often the file was rewritten; of one length."""

    @classmethod
    def read(cls, content: bytes) -> "Holder | None":
        """Return what a lock's file says; nothing if it is only half written."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def lives(self) -> bool | None:
        """Return whether the process lives, or None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # Not the same: the id has a new owner, or the clock was set.
            same = abs(process.create_time() - self.started) < STARTED_S
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None
        return True if same else None

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since).astimezone()
        return f"run {self.run!r} ({self.host}, pid {self.pid}) since {since:%Y-%m-%d %H:%M}"


@contextmanager
def locked(location: Location, run: str) -> Iterator[None]:
    """Hold the lock on `location` for `run`, after waiting for as long as another process has it.

    A process that stood still until another took its lock is ended: it must not go on writing.
    """
    lock = _Lock(location, run)
    lock.take()
    try:
        yield
    finally:
        lock.release()


class _Lock:
    def __init__(self, location: Location, run: str) -> None:
        self.name, self.file = location.name, Location(location.filesystem, f"{location.path}.lock")
        self._own = {
            "run": run,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "machine": _machine(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": uuid.uuid4().hex,
        }
        self._beats, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lock {self.name}", daemon=True)

    def take(self) -> None:
        self.file.parent.make_dir()
        before, looks, said = b"", 0, False
        while not self._create():
            content = self._look()
            if content is None:
                continue
            looks = looks + 1 if content == before else 1
            before, holder = content, Holder.read(content)
            lives = holder.lives() if holder else None
            if lives is False or (lives is None and looks > PATIENCE):
                logger.info("%s: %s is gone; going on", self.name, holder or "its maker")
                if self._replace(content):
                    break
                continue
            if not said:
                said = True
                logger.info("%s: made by %s; waiting for it", self.name, holder or "another run")
            time.sleep(POLL_S)
        self._thread.start()

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        content = self._look()
        if content is not None and self._is_own(content):
            self.file.delete()

    def _create(self) -> bool:
        """Lock what nobody locks; return whether that went well."""
        return self.file.create(self._content()) and (self.file.is_local or self._settled())

    def _replace(self, dead: bytes) -> bool:
        """Lock what the dead holder of this content had; return whether that went well."""
        if self._look() != dead:
            return False
        self.file.write_bytes(self._content())
        return self._settled()

    def _settled(self) -> bool:
        time.sleep(SETTLE_S)
        content = self._look()
        return content is not None and self._is_own(content)

    def _keep(self) -> None:
        """Rewrite the file until the lock is released; end the process if it has lost it."""
        while not self._done.wait(BEAT_S):
            self._beats += 1
            try:
                content = self._look()
                if content is None:
                    self.file.create(self._content())
                elif self._is_own(content):
                    self.file.rewrite(self._content())
                elif holder := Holder.read(content):
                    logger.error(
                        "error: %s: this process stood still, and it went to %s; stopping",
                        *(self.name, holder),
                    )
                    os._exit(1)  # at once: what is still to be written would mix with the other's
            except OSError:  # the storage is full or away: the next beat may reach it
                continue

    def _content(self) -> bytes:
        return json.dumps({**self._own, "beat": f"{self._beats:012d}"}).encode()

    def _is_own(self, content: bytes) -> bool:
        holder = Holder.read(content)
        return holder is not None and holder.token == self._own["token"]

    def _look(self) -> bytes | None:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return None


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{platform.node()} {int(psutil.boot_time())}"
