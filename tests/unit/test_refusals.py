"""A storage that refuses in the middle of a run: one line, and nothing left behind."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray.exceptions
import ray.train

from smt_ray.cluster.refusals import explained, is_lasting
from smt_ray.data.storage import Location

ROOT = Path(__file__).parents[2]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wrapped(error):
    """Return an error as Ray hands it over from a task."""
    return ray.exceptions.RayTaskError("task", f"trace\n{error}", error, "", 1, "here")


def lost(error):
    return ray.train.WorkerGroupError("worker failed", {0: ConnectionError("peer"), 1: error})


def said(error, storage):
    """Return the one line of an error that is met while the storage is used."""
    with pytest.raises(ValueError, match=r"^.+$") as caught, explained(storage):
        raise error
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        wrapped(FULL),
        wrapped(FULL).as_instanceof_cause(),
        lost(FULL),
        ray.train.ControllerError(FULL),
        lost(wrapped(FULL)),
        lost(RuntimeError("Error while serializing: I/O error: No space left (os error 28)")),
        wrapped(RuntimeError("OSError: [Errno 28] Error writing bytes. Detail: [errno 28] No s")),
    ],
)
def test_a_full_disk_is_told_from_whatever_ray_makes_of_it(tmp_path, error):
    line = said(error, Location.of(tmp_path))
    place = f"(storage={tmp_path}|TMPDIR=\\S+)"
    rule = r"no space left \(errno 28\); free some, the same command goes on"
    assert re.fullmatch(f"{place}: {rule}", line)
    assert is_lasting(error)  # Ray Train need not try again


def test_other_refusals_name_storage_reason_and_mend(tmp_path):
    storage = Location.of(tmp_path)
    file = tmp_path / "artifacts" / "x"
    for number, rule in {
        errno.EDQUOT: r"the quota is used up \(.*\); free some or raise it",
        errno.EACCES: r"not writable any more \(.*\); make it writable",
        errno.EROFS: r"it has become read-only \(.*\); make it writable",
        errno.EIO: r"it does not answer \(.*\); when it does",
        errno.ESTALE: r"it does not answer \(.*\); when it does",
    }.items():
        error = OSError(number, os.strerror(number), str(file))
        line = said(wrapped(error), storage)
        assert re.fullmatch(f"storage={tmp_path}: {rule}, the same command goes on", line)
        assert is_lasting(error) == (number not in {errno.EIO, errno.ESTALE})


def test_a_storage_that_is_gone_is_told(tmp_path):
    gone = Location.of(tmp_path / "gone")
    with pytest.raises(FileNotFoundError) as caught:
        (gone / "artifacts" / "x").write_text("x")
    assert said(caught.value, gone) == (
        f"storage={gone}: it is gone; when it is back, the same command goes on"
    )
    with pytest.raises(FileNotFoundError), explained(Location.of(tmp_path)):
        raise caught.value  # the storage is there: the error is of something else


def test_a_users_error_in_a_task_is_its_line_and_other_errors_stay(tmp_path):
    storage = Location.of(tmp_path)
    error = wrapped(ValueError("a.parquet: damaged;\n delete it")).as_instanceof_cause()
    assert said(error, storage) == "a.parquet: damaged; delete it"
    assert said(lost(ValueError("x=1: no")), storage) == "x=1: no"
    for other in (
        ValueError("plain\ntwo"),
        PermissionError(errno.EACCES, "no", "/elsewhere"),
        wrapped(RuntimeError("a bug")),
        lost(ray.exceptions.ActorDiedError()),
    ):
        with pytest.raises(type(other)) as caught, explained(storage):
            raise other
        assert caught.value is other
        assert not is_lasting(other) or isinstance(other, PermissionError)


def limited(script, *arguments):
    """Run a script whose process may write 1,000 bytes to a file: a disk that is full soon."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    command = [sys.executable, "-c", limit + script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_write_that_fails_leaves_no_part(tmp_path):
    ran = limited(
        "import sys\n"
        "from smt_ray.data.storage import Location\n"
        "place = Location.of(sys.argv[1])\n"
        "(place / 'old').write_text('whole')\n"
        "for write in ((place / 'old').write_bytes, (place / 'new').create):\n"
        "    try:\n"
        "        write(bytes(9000))\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n",
        tmp_path,
    )
    assert ran.stdout.split() == [str(errno.EFBIG)] * 2, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "whole"


def test_a_marker_that_cannot_be_written_leaves_nothing(tmp_path):
    ran = limited(
        "import resource, sys\n"
        "from smt_ray.data.storage import Location\n"
        "from smt_ray.cluster.session import check_storage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2, 1000))\n"
        "try:\n"
        "    check_storage(Location.of(sys.argv[1]), 0)\n"
        "except ValueError as error:\n"
        "    print(error)\n",
        tmp_path,
    )
    assert re.fullmatch(rf"storage={tmp_path}: not writable \(.+\); choose another\n", ran.stdout)
    assert list(tmp_path.iterdir()) == []
