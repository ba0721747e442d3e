"""Faults that take seconds: in the token stage on one Ray, and files that others have harmed."""

import json
import threading
import time

import pyarrow.parquet as pq
import pytest

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.manifest import check_shards, open_manifest
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokens import write_tokens
from tests.fault.runs import SPLITS, away
from tests.s3 import SLOW_DOWN, served

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
UNITS = 12


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A source of so many units."""
    text = "".join(f"{n}: the line of number {n * n}\n" for n in range(1000))
    (tmp_path / "text.txt").write_text(text)
    monkeypatch.setattr(pieces, "UNIT_BYTES", len(text) // UNITS)
    source = str(tmp_path / "text.txt")
    return plan_source(DataConfig(source=source, sequence_length=16, validation_fraction=0.2))


def ids(target):
    """Return the identities of all rows of the token shards."""
    found = []
    for split in SPLITS:
        for file in (target / split).files(".parquet"):
            with file.open() as handle:
                found += pq.read_table(handle)["sequence_id"].to_pylist()
    return found


def begun(target, fault):
    """Start a thread that injects a fault when the first unit is done."""

    def inject():
        while not any(file.name != "try.json" for file in (target / "units").files(".json")):
            time.sleep(0.02)
        fault()

    thread = threading.Thread(target=inject)
    thread.start()
    return thread


def move(place):
    with away(place, 3):
        pass


def test_parts_of_a_try_that_was_killed_are_removed(plan, tmp_path):
    target = Location.of(tmp_path / "tokens")
    (target / "train").make_dir()
    (target / "train" / "000000-0000.parquet.0123abcd.part").write_text("half")
    write_tokens(plan, target)
    assert [file for file in target.files(recursive=True) if file.name.endswith(".part")] == []


def test_the_token_stage_waits_for_a_storage_that_is_moved_away(plan, tmp_path):
    place = tmp_path / "runs"
    place.mkdir()
    target = Location.of(place) / "tokens"
    thread = begun(target, lambda: move(place))
    found = write_tokens(plan, target)
    thread.join()
    assert not place.with_name("runs-away").exists()
    assert found == write_tokens(plan, Location.of(tmp_path / "whole"))
    assert sorted(ids(target)) == sorted(set(ids(Location.of(tmp_path / "whole"))))


def test_the_token_stage_waits_for_an_object_store_that_is_too_busy(plan, tmp_path):
    with served() as s3:
        target = Location.of(s3.uri("bucket/tokens"))

        def busy():
            with s3.refusing(lambda *request: SLOW_DOWN):
                time.sleep(5)

        thread = begun(target, busy)
        found = write_tokens(plan, target)
        thread.join()
        assert s3.refused
        assert found == write_tokens(plan, Location.of(tmp_path / "whole"))
        assert sorted(ids(target)) == sorted(set(ids(Location.of(tmp_path / "whole"))))
        assert [f for f in target.files(recursive=True) if f.name.endswith(".part")] == []


@pytest.fixture
def made(plan, tmp_path):
    target = Location.of(tmp_path / "made")
    write_tokens(plan, target)
    return target


def test_a_truncated_shard_or_manifest_is_named(made):
    shard = (made / "train").files(".parquet")[0]
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"^{shard}: [^\n]+delete {made} and give the same"):
        check_shards(made / "train", open_manifest(made / "train", "tokens"))
    manifest = made / "validation" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=rf"^{manifest}: not JSON; delete {made} and give the same [^\n]+$"
    ):
        open_manifest(made / "validation", "tokens")


def test_a_foreign_file_among_shards_is_not_read(made):
    manifest = open_manifest(made / "train", "tokens")
    for name in ("notes.txt", ".nfs0001", "other.parquet.0123abcd.part"):
        (made / "train" / name).write_text("not a shard")
    check_shards(made / "train", manifest)
    assert len(ids(made)) > manifest["sequences"] > 0
    assert json.loads((made / "train" / "manifest.json").read_text()) == manifest
