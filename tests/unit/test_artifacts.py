"""Artifacts: made once, found again, gone on with, and told apart by everything they depend on."""

from contextlib import contextmanager, nullcontext

import pytest

from smt_ray.data.storage import Location
from smt_ray.pipeline.artifacts import MANIFEST, fingerprint
from smt_ray.pipeline.artifacts import make as make_claimed

SETTINGS = {"steps": 3, "rate": 0.1, "model": {"width": 64}}


def make(storage, stage, settings, upstream, build):
    """Make an artifact that nobody else makes."""
    return make_claimed(storage, stage, settings, upstream, build, lambda place: nullcontext())


class Interrupted(Exception):
    """Stands for a kill."""


def build(place, mark):
    assert place.name.endswith(mark)
    count = int((place / "count").read_text()) if (place / "count").exists() else 0
    (place / "count").write_text(str(count + 1))
    return {"builds": count + 1}


def interrupted(place, mark):
    build(place, mark)
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
    assert found.manifest == made.manifest
    assert found.manifest["settings"] == SETTINGS
    assert found.manifest["seconds"] >= 0


def test_an_unfinished_artifact_is_gone_on_with(storage):
    with pytest.raises(Interrupted):
        make(storage, "tokens", SETTINGS, [], interrupted)
    made = make(storage, "tokens", SETTINGS, [], build)
    assert (made.reused, made.resumed, made.figures) == (False, True, {"builds": 2})


def test_the_manifest_is_written_last(storage):
    def look(place, mark):
        assert not (place / MANIFEST).exists()
        return build(place, mark)

    assert (make(storage, "tokens", SETTINGS, [], look).location / MANIFEST).exists()


def test_every_setting_stage_and_upstream_changes_the_fingerprint():
    marks = [
        fingerprint("teacher", SETTINGS, ["one"]),
        fingerprint("labels", SETTINGS, ["one"]),
        fingerprint("teacher", SETTINGS | {"steps": 4}, ["one"]),
        fingerprint("teacher", SETTINGS | {"model": {"width": 32}}, ["one"]),
        fingerprint("teacher", {"steps": 3}, ["one"]),
        fingerprint("teacher", SETTINGS, ["two"]),
        fingerprint("teacher", SETTINGS, ["one", "two"]),
        fingerprint("teacher", SETTINGS, ["two", "one"]),
        fingerprint("teacher", SETTINGS, []),
    ]
    assert len(set(marks)) == len(marks)
    assert fingerprint("teacher", dict(reversed(SETTINGS.items())), ["one"]) == marks[0]


def test_what_another_makes_during_the_wait_for_the_claim_is_found(storage):
    made = []

    @contextmanager
    def lock(place):
        made.append(make(storage, "tokens", SETTINGS, [], build))
        assert made[0].location == place
        yield

    found = make_claimed(storage, "tokens", SETTINGS, [], interrupted, lock)
    assert found.reused
    assert found.manifest == made[0].manifest
    again = make_claimed(storage, "tokens", SETTINGS, [], interrupted, lock)
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
