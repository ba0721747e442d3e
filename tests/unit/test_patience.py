"""A storage that is gone for a while is waited for; what it would refuse again is not."""

import errno
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from smt_ray.cluster.refusals import explained
from smt_ray.config import masked
from smt_ray.data import patience
from smt_ray.data.patience import PatientS3
from smt_ray.data.storage import PART, Location
from tests.s3 import FORBIDDEN, KEY, SECRET, SLOW_DOWN, served

ROOT = Path(__file__).parents[2]
EIO = "/proc/self/mem"  # its first page cannot be read: an input/output error


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "x.txt").write_text("kept")
    return Location.of(tmp_path / "runs")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)


def after(seconds, function, *arguments):
    timer = threading.Timer(seconds, function, arguments)
    timer.start()
    return timer


def listed(place):
    return sorted(path.relative_to(place) for path in place.rglob("*"))


CALLS = {
    "read": lambda place: (place / "a" / "x.txt").read_text(),
    "exists": lambda place: (place / "a" / "x.txt").exists(),
    "size": lambda place: (place / "a" / "x.txt").size(),
    "list": lambda place: len(place.files(recursive=True)),
    "sizes": lambda place: (place / "a").sizes(),
    "directories": lambda place: len(place.directories()),
    "write": lambda place: (place / "a" / "y.txt").write_text("new"),
    "create": lambda place: (place / "a" / "z.txt").create(b"new"),
    "make": lambda place: (place / "b" / "c").make_dir().is_dir(),
    "move": lambda place: place.filesystem.move(f"{place}/a/x.txt", f"{place}/a/w.txt"),
    "delete": lambda place: (place / "a" / "x.txt").delete(),
    "open": lambda place: (place / "a" / "x.txt").open().read(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_storage_that_is_moved_away_and_back_is_waited_for(storage, call, tmp_path):
    place, twin = tmp_path / "runs", tmp_path / "twin"
    shutil.copytree(place, twin)
    expected = CALLS[call](Location.of(twin))
    place.rename(tmp_path / "away")
    timer = after(0.5, (tmp_path / "away").rename, place)
    travelled = pickle.loads(pickle.dumps(storage))  # a worker that starts meanwhile waits as well
    began = time.monotonic()
    found = CALLS[call](travelled)
    assert time.monotonic() - began > 0.3
    timer.join()
    assert found == expected
    assert not (tmp_path / "away").exists()
    assert listed(place) == listed(twin)  # nothing was made in its place meanwhile


def test_a_storage_that_stays_away_is_one_line_and_not_waited_for_twice(storage, tmp_path, short):
    (tmp_path / "runs").rename(tmp_path / "away")
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match=r"^storage=\S+: it is gone; when it is back, the same"),
        explained(storage),
    ):
        (storage / "a" / "x.txt").read_bytes()
    waited = time.monotonic() - began
    assert 0.7 < waited < 4
    with pytest.raises(FileNotFoundError):
        (storage / "a" / "y.txt").write_text("new")
    assert time.monotonic() - began - waited < 0.5
    assert not (tmp_path / "runs").exists()
    (tmp_path / "away").rename(tmp_path / "runs")
    assert (storage / "a" / "x.txt").read_text() == "kept"


def test_what_is_missing_from_a_storage_that_is_there_is_told_at_once(storage, tmp_path):
    began = time.monotonic()
    assert not (storage / "a" / "none").exists()
    assert (storage / "none").files() == []
    with pytest.raises(FileNotFoundError):
        (storage / "none").read_bytes()
    with pytest.raises(FileNotFoundError):
        (storage / "none" / "x").write_text("x")
    assert not Location.of(tmp_path / "later").exists()  # it was never there
    with pytest.raises(OSError, match=r"Is a directory|Not a regular file|directory"):
        (storage / "a").read_bytes()
    assert time.monotonic() - began < 0.5


def test_an_input_output_error_is_tried_again_until_it_passes(tmp_path):
    link = tmp_path / "x.txt"
    link.symlink_to(EIO)
    place = Location.of(tmp_path)

    def mend():
        (tmp_path / "good").write_text("good")
        (tmp_path / "new").symlink_to("good")
        (tmp_path / "new").rename(link)

    timer = after(0.5, mend)
    assert (place / "x.txt").read_text() == "good"
    timer.join()


def test_an_input_output_error_that_stays_names_the_storage(tmp_path, short):
    (tmp_path / "x.txt").symlink_to(EIO)
    began = time.monotonic()
    with pytest.raises(OSError, match="errno 5") as caught:
        (Location.of(tmp_path) / "x.txt").read_bytes()
    assert caught.value.errno == errno.EIO
    assert 0.7 < time.monotonic() - began < 4


@pytest.fixture(scope="module")
def s3():
    with served() as server:
        yield server


def closed(*request):
    return SLOW_DOWN


S3_CALLS = {
    "read": lambda place: (place / "x.txt").read_text(),
    "exists": lambda place: (place / "x.txt").exists(),
    "list": lambda place: [file.name for file in place.files()],
    "write": lambda place: (place / "y.txt").write_text("new"),
    "large": lambda place: (place / "z.bin").write_bytes(bytes(12 << 20)),
    "move": lambda place: place.filesystem.move(f"{place.path}/x.txt", f"{place.path}/w.txt"),
    "delete": lambda place: (place / "x.txt").delete(),
    "open": lambda place: (place / "x.txt").open().read(),
}


@pytest.mark.parametrize("away", ["503", "refused"])
@pytest.mark.parametrize("call", S3_CALLS)
def test_an_object_store_is_waited_for(s3, call, away):
    place = Location.of(s3.uri(f"bucket/{call}-{away}"))
    (place / "x.txt").write_text("kept")
    place = pickle.loads(pickle.dumps(place))
    if away == "503":
        s3.rule = closed
        timer = after(1.0, setattr, s3, "rule", lambda *request: "")
    else:
        s3.stop()
        timer = after(1.0, s3.start)
    began = time.monotonic()
    S3_CALLS[call](place)
    timer.join()
    assert 0.9 < time.monotonic() - began < 10
    files = {file.name: file.size() for file in place.files()}
    made = {"write": {"y.txt": 3}, "large": {"z.bin": 12 << 20}}.get(call, {})
    kept = {"move": {"w.txt": 4}, "delete": {}}.get(call, {"x.txt": 4})
    assert files == made | kept


def test_an_object_store_that_stays_away_is_one_line(s3, monkeypatch):
    monkeypatch.setattr(patience, "S3_RETRIES", 4)
    place = Location.of(s3.uri("bucket/away"))
    rule = r"it does not answer \(.+\); when it does, the same command goes on$"
    with s3.refusing(closed), pytest.raises(ValueError, match=rule) as caught, explained(place):
        (place / "x.txt").read_bytes()
    assert len(s3.refused) >= 5
    assert str(caught.value).startswith("storage=s3://bucket/away: ")
    assert SECRET not in str(caught.value)


def test_what_an_object_store_would_refuse_again_is_told_at_once(s3):
    place = Location.of(s3.uri("bucket/none"))
    began = time.monotonic()
    assert not place.exists()
    with pytest.raises(FileNotFoundError):
        (place / "x.txt").read_bytes()
    rule = r"^storage=s3://bucket/none: refused \(.+\); mend that, the same command goes on$"
    with (
        s3.refusing(lambda *request: FORBIDDEN),
        pytest.raises(ValueError, match=rule),
        explained(place),
    ):
        (place / "x.txt").write_text("x")
    assert time.monotonic() - began < 2


def test_options_and_keys_of_a_uri_stay(s3):
    place = Location.of(s3.uri("bucket/a", allow_bucket_creation="true"))
    plain, _ = fs.FileSystem.from_uri(s3.uri("bucket/a", allow_bucket_creation="true"))
    assert isinstance(place.filesystem, PatientS3)
    assert place.filesystem == plain
    assert pickle.loads(pickle.dumps(place)) == place
    assert KEY not in masked(s3.uri("bucket/a"))
    assert SECRET not in f"{place} {place!r} {place.filesystem}"


def of_a_prefix(method, path, query):
    """Refuse what a role may not do that has the objects below `bucket/mine/` alone."""
    if path.rstrip("/") == "/bucket":
        listed = method == "GET" and "prefix=mine" in query
        deleted = method == "POST" and query.startswith("delete")  # of objects, each one checked
        return "" if listed or deleted else FORBIDDEN
    return "" if path.startswith("/bucket/mine/") else FORBIDDEN


@pytest.mark.parametrize("hidden", [False, True])
def test_a_role_of_one_prefix_is_enough(s3, hidden):
    """With `hidden`, it is told 403 of objects that are not there, as without s3:ListBucket."""
    place = Location.of(s3.uri(f"bucket/mine/{hidden}"))
    there = set()

    def rule(method, path, query):
        if hidden and method == "HEAD" and path not in there:
            return FORBIDDEN
        return of_a_prefix(method, path, query)

    with s3.refusing(rule):
        assert not place.exists()
        deep = (place / "a" / "b").make_dir()
        (deep / "x.txt").write_text("x")
        there |= {f"/bucket/mine/{hidden}/a/b/x.txt", f"/bucket/mine/{hidden}/a/b/w.txt"}
        assert (deep / "x.txt").read_text() == "x"
        assert deep.exists()
        assert deep.is_dir()
        with (deep / "w.txt").published() as part, part.output() as sink:
            there |= {f"/{part.path}"}
            sink.write(b"w")
        assert [file.name for file in deep.files()] == ["w.txt", "x.txt"]
        (deep / "x.txt").delete()
        place.delete_dir()
    assert Location.of(s3.uri(f"bucket/mine/{hidden}")).files(recursive=True) == []


def test_a_part_that_fails_is_not_taken_for_whole(s3):
    place = Location.of(s3.uri("bucket/fails"))

    def rows():
        yield bytes(7 << 20)
        raise KeyError

    with pytest.raises(KeyError), (place / "x").published() as part, part.output() as sink:
        sink.writelines(rows())
    assert place.files() == []


def test_a_kill_in_a_multipart_upload_leaves_nothing(s3):
    script = (
        "import sys, time\n"
        "from smt_ray.data.storage import Location\n"
        "place = Location.of(sys.argv[1])\n"
        "direct = (place / 'direct.bin').output()\n"
        "with (place / 'x.bin').published() as part, part.output() as sink:\n"
        "    for stream in (direct, sink):\n"
        "        stream.write(bytes(23 << 20))\n"
        "        stream.flush()\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    uri = s3.uri("bucket/killed")
    command = [sys.executable, "-c", script, uri]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert Location.of(uri).files() == []


def test_a_kill_between_copy_and_deletion_leaves_the_whole_and_a_part(s3):
    """A move is a copy, which is there at once, and a deletion."""
    script = (
        "import sys\n"
        "from smt_ray.data.storage import Location\n"
        "with (Location.of(sys.argv[1]) / 'x.parquet').published() as part:\n"
        "    part.write_bytes(bytes(9 << 20))\n"
        "    print('moving', flush=True)\n"
    )
    uri = s3.uri("bucket/moved")
    with s3.refusing(lambda method, path, query: SLOW_DOWN if method == "DELETE" else ""):
        command = [sys.executable, "-c", script, uri]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == "moving\n"
            while not any(method == "DELETE" for method, *_ in s3.refused):
                time.sleep(0.05)
            writer.send_signal(signal.SIGKILL)
    sizes = Location.of(uri).sizes()
    assert sizes.pop("x.parquet") == 9 << 20
    assert [name.endswith(PART) for name in sizes] == [True]
