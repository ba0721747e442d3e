"""Content-addressed results of stages: made once, found again by any run with the same settings.

`<storage>/artifacts/<stage>-<fingerprint>/` holds a stage's files; its `manifest.json` is written
last, so a directory without one is unfinished. The fingerprint covers the scientific settings that
the stage depends on and the fingerprints of what it was made from.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from smt_ray.data.storage import Location

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A finished result, and whether it was found rather than made."""

    stage: str
    fingerprint: str
    location: Location
    manifest: dict[str, Any]
    reused: bool
    resumed: bool

    @property
    def figures(self) -> dict[str, Any]:
        """What the stage returned when it was made."""
        return self.manifest["figures"]


def fingerprint(stage: str, settings: dict[str, Any], upstream: Sequence[str]) -> str:
    """Hash what decides a stage's result: its settings and the fingerprints of its inputs."""
    parts = {
        "format": FORMAT,
        "stage": stage,
        "settings": settings,
        "upstream": list(upstream),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def place_of(storage: Location, stage: str, mark: str) -> Location:
    """Return where the artifact of a stage and fingerprint lies."""
    return storage / "artifacts" / f"{stage}-{mark}"


def make(
    storage: Location,
    stage: str,
    settings: dict[str, Any],
    upstream: Sequence[Artifact],
    build: Callable[[Location, str], dict[str, Any]],
    lock: Callable[[Location], AbstractContextManager[None]],
) -> Artifact:
    """Return the stage's artifact: the finished one if it is there, else built or gone on with.

    Args:
        storage: the root of all runs.
        stage: name of the stage.
        settings: the settings that decide its result, JSON values.
        upstream: the artifacts it is made from.
        build: given the artifact's place and fingerprint, writes its files and returns its figures;
            called again on an unfinished place, it goes on.
        lock: given the place, a context that only one who makes it is in at a time.
    """
    mark = fingerprint(stage, settings, [artifact.fingerprint for artifact in upstream])
    place = place_of(storage, stage, mark)
    if not (place / MANIFEST).exists():
        with lock(place):
            if not (place / MANIFEST).exists():  # nobody made it while this one waited
                return _build(place, stage, settings, upstream, build)
    return Artifact(stage, mark, place, read_manifest(place), True, False)


def read_manifest(place: Location) -> dict[str, Any]:
    """Return the manifest of a finished artifact.

    Raises:
        ValueError: in one line that names the file, if it is damaged.
    """
    file = place / MANIFEST
    manifest = file.read_json()
    if not isinstance(manifest, dict) or not {"figures", "seconds"} <= manifest.keys():
        raise file.damaged("it has no figures and seconds")
    return manifest


def _build(
    place: Location,
    stage: str,
    settings: dict[str, Any],
    upstream: Sequence[Artifact],
    build: Callable[[Location, str], dict[str, Any]],
) -> Artifact:
    mark = place.name.removeprefix(f"{stage}-")
    resumed = place.exists()
    place.make_dir()
    start = time.monotonic()
    figures = build(place, mark)
    manifest = {
        "stage": stage,
        "fingerprint": mark,
        "settings": settings,
        "upstream": {artifact.stage: artifact.fingerprint for artifact in upstream},
        "seconds": round(time.monotonic() - start, 3),
        "figures": figures,
    }
    (place / MANIFEST).write_json(manifest)
    return Artifact(stage, mark, place, manifest, False, resumed)
