"""Locations: paths, URIs and any other pyarrow file system behave alike."""

import pickle
import re

import pytest
from pyarrow import fs

from smt_ray.data.storage import Location


@pytest.fixture(params=["path", "uri", "other"])
def root(request, tmp_path):
    if request.param == "other":  # not local to the project, as a store of objects
        return Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")
    return Location.of(tmp_path if request.param == "path" else tmp_path.as_uri())


def test_files_are_written_whole_read_listed_and_copied(root, tmp_path):
    deep = (root / "a" / "b").make_dir()
    (deep / "x.txt").write_text("caf\u00e9")
    (deep / "x.txt").write_text("caf\u00e9 again")
    (root / "a" / "y.json").write_json({"one": [1, None]})
    assert (tmp_path / "a/b/x.txt").read_text(encoding="utf-8") == "caf\u00e9 again"
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["x.txt", "y.json"]  # no part is left
    assert (root / "a" / "y.json").read_json() == {"one": [1, None]}
    assert [file.name for file in root.files(recursive=True)] == ["x.txt", "y.json"]
    assert [file.name for file in (root / "a").files(".json")] == ["y.json"]
    assert (deep / "x.txt").size() == 11
    with (deep / "x.txt").open() as stream:
        stream.seek(6)
        assert stream.read() == b"again"

    (root / "a").copy_to((root / "copy").make_dir())
    (deep / "x.txt").copy_to(root / "z.txt")
    assert (root / "copy" / "b" / "x.txt").read_text() == (root / "z.txt").read_text()
    (root / "a").delete_dir()
    (root / "a").delete_dir()
    assert not (root / "a").exists()
    assert (root / "copy").is_dir()


def test_a_location_travels(root):
    (root / "x.txt").write_text("here")
    assert pickle.loads(pickle.dumps(root / "x.txt")).read_text() == "here"
    assert Location.of(root) is root


def test_what_is_missing_says_so(root):
    missing = root / "missing"
    assert (missing.exists(), missing.is_dir(), missing.files()) == (False, False, [])
    with pytest.raises(FileNotFoundError, match="missing: no such file"):
        missing.size()
    with pytest.raises(FileNotFoundError):
        missing.read_bytes()


def test_free_bytes_are_those_of_the_nearest_directory(root):
    free = (root / "not" / "yet" / "there").free_bytes()
    assert free == float("inf") if not root.is_local else 0 < free < float("inf")


def test_relative_paths_and_uris_name_the_same_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Location.of("runs") == Location.of(tmp_path / "runs")
    assert str(Location.of((tmp_path / "runs").as_uri())) == str(tmp_path / "runs")


@pytest.mark.parametrize("place", ["nowhere://bucket/x", "http://[/x", "hdfs://[::]:1/x"])
def test_an_unusable_uri_is_refused_in_one_line(place):
    said = r"not a usable path or URI \([^\n]*\); give a directory or file, or a URI as [^\n]*"
    with pytest.raises(ValueError, match=f"^{re.escape(place)}: {said}$"):
        Location.of(place)
    with pytest.raises(ValueError, match=f"^storage={re.escape(place)}: {said}$"):
        Location.of(place, "storage")
