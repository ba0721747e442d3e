"""Finished units of the token stage: which are found again, what is removed, and when."""

import pytest

from smt_ray.data.storage import Location
from smt_ray.data.units import UNITS, Record, Try
from smt_ray.pipeline.artifacts import MANIFEST

SPLITS = ("train", "validation")


@pytest.fixture
def artifacts(tmp_path):
    return Location.of(tmp_path / "artifacts")


def unit(name, split="train", shards=2):
    names = {f"{name}-{n}.parquet": {"rows": n + 1} for n in range(shards)}
    counts = {"bytes": 7, "documents": 3, "tokens": 9, "targets": 0}
    return Record(fingerprint=name, split=split, digest=f"rows of {name}", shards=names, **counts)


def finish(target, record):
    for name in record.shards:
        (target / record.split / name).write_text(f"{record.fingerprint} {name}")
    record.write(target)


def names(place):
    return sorted(file.path[len(place.path) + 1 :] for file in place.files(recursive=True))


def begin(target, settings="same"):
    return Try(target.make_dir(), {"source": settings}, SPLITS)


def test_a_try_goes_on_from_its_whole_units_and_removes_the_rest(artifacts):
    target = artifacts / "tokens-one"
    begin(target)
    finish(target, unit("a"))
    finish(target, unit("b", "validation"))
    finish(target, unit("none", shards=0))
    finish(target, unit("torn"))
    target.filesystem.delete_file((target / "train" / "torn-1.parquet").path)
    (target / "train" / "c-0.parquet").write_text("a shard of a unit without a record")
    (target / "validation" / "d-0.parquet.123.part").write_text("a part")
    again = begin(target)
    kept = [unit("a"), unit("b", "validation"), unit("none", shards=0)]
    assert again.done == {record.fingerprint: record for record in kept}
    shards = [name for name in names(target) if not name.startswith(UNITS)]
    assert shards == [
        "train/a-0.parquet", "train/a-1.parquet",
        "validation/b-0.parquet", "validation/b-1.parquet",
    ]  # fmt: skip
    again.finish()
    assert names(target) == shards


def test_units_of_an_earlier_try_are_copied_and_a_failed_one_is_deleted(artifacts):
    for name, settings in (("failed", "same"), ("alive", "same"), ("other", "other")):
        earlier = begin(artifacts / f"tokens-{name}", settings)
        finish(earlier.target, unit("a"))
        finish(earlier.target, unit(name))
        if name != "alive":
            earlier.fail()
    (artifacts / "teacher-x").make_dir()
    done = begin(artifacts / "tokens-done")
    finish(done.target, unit("done"))
    (done.target / MANIFEST).write_json({})

    run = begin(artifacts / "tokens-new")
    found = run.elsewhere(["a", "failed", "alive", "other", "done", "new"])
    assert found.keys() == {"a", "failed", "alive"}
    record, place = found["failed"]
    record.copy(place, run.target)
    assert begin(run.target).done == {"failed": unit("failed")}
    shard = run.target / "train" / "failed-1.parquet"
    assert shard.read_text() == "failed failed-1.parquet"
    run.finish()
    left = {place.name for place in artifacts.directories()}
    assert left == {"tokens-alive", "tokens-other", "tokens-done", "tokens-new", "teacher-x"}
    with pytest.raises(FileNotFoundError):
        record.copy(place, run.target)


def test_a_try_that_begins_again_has_not_failed(artifacts):
    earlier = begin(artifacts / "tokens-old")
    earlier.fail()
    begin(earlier.target)
    begin(artifacts / "tokens-new").finish()
    assert earlier.target.exists()
