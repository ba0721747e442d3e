"""Processes of a test's own Ray."""

import signal
from contextlib import suppress

import psutil


def kill(title: str) -> None:
    """Kill the first process of that title."""
    found = titled(title)
    assert found, f"no process {title}"
    found[0].send_signal(signal.SIGKILL)


def titled(title: str) -> list[psutil.Process]:
    """Return the living processes of this test's own Ray by the title that Ray gives them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended, though its parent may not know
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found
