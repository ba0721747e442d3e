"""Artifacts: made once, found again, gone on with, and told apart by everything they depend on."""

from contextlib import contextmanager, nullcontext

import pytest

from smt_ray.data.storage import Location
from smt_ray.pipeline.artifacts import MANIFEST, fingerprint, location_of, read_manifest
from smt_ray.pipeline.artifacts import make as make_claimed

SETTINGS = {"steps": 3, "rate": 0.1, "model": {"width": 64}}


def location(storage, stage, settings, upstream):
    """Return where an artifact lies."""
    mark = fingerprint(stage, 1, settings, [artifact.identity for artifact in upstream])
    return location_of(storage, stage, mark)


def make(storage, stage, settings, upstream, build):
    """Make an artifact that nobody else makes."""
    place = location(storage, stage, settings, upstream)
    return make_claimed(place, settings, upstream, build, lambda place: nullcontext())


class Interrupted(Exception):
    """Stands for a kill."""


def build(place):
    count = int((place / "count").read_text()) if (place / "count").exists() else 0
    (place / "count").write_text(str(count + 1))
    return {"builds": count + 1}


def interrupted(place):
    build(place)
    raise Interrupted


@pytest.fixture
def storage(tmp_path):
    return Location.of(tmp_path)


def test_a_finished_artifact_is_found_and_not_built_again(storage):
    made = make(storage, "tokens", SETTINGS, [], build)
    assert (made.reused, made.resumed, made.figures) == (False, False, {"builds": 1})
    found = make(storage, "tokens", SETTINGS, [], interrupted)
    assert (found.reused, found.resumed, found.figures) == (True, False, {"builds": 1})
    assert found.location == made.location == storage / "artifacts" / f"tokens-{made.fingerprint}"
    assert found.manifest == made.manifest == read_manifest(made.location)
    assert found.manifest["settings"] == SETTINGS
    assert found.manifest["fingerprint"] == found.fingerprint
    assert (found.stage, found.manifest["stage"]) == ("tokens", "tokens")
    assert found.manifest["seconds"] >= 0


def test_an_unfinished_artifact_is_gone_on_with(storage):
    with pytest.raises(Interrupted):
        make(storage, "tokens", SETTINGS, [], interrupted)
    made = make(storage, "tokens", SETTINGS, [], build)
    assert (made.reused, made.resumed, made.figures) == (False, True, {"builds": 2})


def test_the_manifest_is_written_last(storage):
    def look(place):
        assert not (place / MANIFEST).exists()
        return build(place)

    assert (make(storage, "tokens", SETTINGS, [], look).location / MANIFEST).exists()


def test_every_setting_stage_version_and_upstream_changes_the_fingerprint():
    marks = [
        fingerprint("teacher", 1, SETTINGS, ["one"]),
        fingerprint("labels", 1, SETTINGS, ["one"]),
        fingerprint("teacher", 2, SETTINGS, ["one"]),
        fingerprint("teacher", 1, SETTINGS | {"steps": 4}, ["one"]),
        fingerprint("teacher", 1, SETTINGS | {"model": {"width": 32}}, ["one"]),
        fingerprint("teacher", 1, {"steps": 3}, ["one"]),
        fingerprint("teacher", 1, SETTINGS, ["two"]),
        fingerprint("teacher", 1, SETTINGS, ["one", "two"]),
        fingerprint("teacher", 1, SETTINGS, ["two", "one"]),
        fingerprint("teacher", 1, SETTINGS, []),
    ]
    assert len(set(marks)) == len(marks)
    assert fingerprint("teacher", 1, dict(reversed(SETTINGS.items())), ["one"]) == marks[0]


def test_what_another_makes_during_the_wait_for_the_claim_is_found(storage):
    made = []

    @contextmanager
    def lock(place):
        made.append(make(storage, "tokens", SETTINGS, [], build))
        assert made[0].location == place
        yield

    own = location(storage, "tokens", SETTINGS, [])
    found = make_claimed(own, SETTINGS, [], interrupted, lock)
    assert found.reused
    assert found.manifest == made[0].manifest
    again = make_claimed(own, SETTINGS, [], interrupted, lock)
    assert again.manifest == found.manifest
    assert len(made) == 1  # what is finished is not locked


def test_a_change_upstream_makes_all_below_it_anew(storage):
    def chain(seed):
        tokens = make(storage, "tokens", {"seed": seed}, [], build)
        return tokens, make(storage, "teacher", SETTINGS, [tokens], build)

    first, again, other = chain(1), chain(1), chain(2)
    assert [artifact.reused for artifact in (*first, *again, *other)] == [0, 0, 1, 1, 0, 0]
    assert other[1].manifest["upstream"] == {"tokens": other[0].fingerprint}
    assert first[1].location != other[1].location


def test_what_is_below_knows_an_artifact_by_its_content_where_that_has_a_digest(storage):
    def digested(place):
        return build(place) | {"digest": "content"}

    def chain(seed, how):
        tokens = make(storage, "tokens", {"seed": seed}, [], how)
        return tokens, make(storage, "teacher", SETTINGS, [tokens], build)

    first, other = chain(1, digested), chain(2, digested)
    assert (first[0].identity, other[0].identity) == ("content", "content")
    assert [artifact.reused for artifact in (*first, *other)] == [False, False, False, True]
    plain = make(storage, "tokens", {"seed": 3}, [], build)
    assert plain.identity == plain.fingerprint
