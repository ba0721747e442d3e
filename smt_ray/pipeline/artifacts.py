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

    @property
    def identity(self) -> str:
        """What the fingerprints of later stages take: a digest of the content, if there is one."""
        return self.figures.get("digest", self.fingerprint)


def fingerprint(stage: str, version: int, settings: dict[str, Any], upstream: Sequence[str]) -> str:
    """Hash what decides a stage's result.

    Args:
        stage: its name.
        version: what the stage means by the settings.
        settings: JSON values.
        upstream: the identities of its inputs.
    """
    parts = {"stage": stage, "version": version, "settings": settings, "upstream": [*upstream]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def location_of(storage: Location, stage: str, fingerprint: str) -> Location:
    """Return where the artifact of a stage and fingerprint lies."""
    return storage / "artifacts" / f"{stage}-{fingerprint}"


def make(
    location: Location,
    settings: dict[str, Any],
    upstream: Sequence[Artifact],
    build: Callable[[Location], dict[str, Any]],
    lock: Callable[[Location], AbstractContextManager[None]],
) -> Artifact:
    """Return an artifact: the finished one if it is there, else built or gone on with.

    Args:
        location: where it lies, as `location_of` says.
        settings: the settings that decide its result, JSON values; kept to be read.
        upstream: the artifacts it is made from.
        build: given the location, writes its files and returns its figures; called again on an
            unfinished one, it goes on.
        lock: given the location, a context that only one who makes it is in at a time.
    """
    if not (location / MANIFEST).exists():
        with lock(location):
            if not (location / MANIFEST).exists():  # nobody made it while this one waited
                return _build(location, settings, upstream, build)
    return _artifact(location, read_manifest(location), reused=True, resumed=False)


def read_manifest(location: Location) -> dict[str, Any]:
    """Return the manifest of a finished artifact.

    Raises:
        ValueError: in one line that names the file, if it is damaged.
    """
    file = location / MANIFEST
    manifest = file.read_json()
    if not isinstance(manifest, dict) or not {"figures", "seconds"} <= manifest.keys():
        raise file.damaged("it has no figures and seconds")
    return manifest


def _artifact(
    location: Location, manifest: dict[str, Any], *, reused: bool, resumed: bool
) -> Artifact:
    stage, _, fingerprint = location.name.partition("-")
    return Artifact(stage, fingerprint, location, manifest, reused, resumed)


def _build(
    location: Location,
    settings: dict[str, Any],
    upstream: Sequence[Artifact],
    build: Callable[[Location], dict[str, Any]],
) -> Artifact:
    stage, _, fingerprint = location.name.partition("-")
    resumed = location.exists()
    location.make_dir()
    start = time.monotonic()
    figures = build(location)
    manifest = {
        "stage": stage,
        "fingerprint": fingerprint,
        "settings": settings,
        "upstream": {artifact.stage: artifact.fingerprint for artifact in upstream},
        "seconds": round(time.monotonic() - start, 3),
        "figures": figures,
    }
    (location / MANIFEST).write_json(manifest)
    return _artifact(location, manifest, reused=False, resumed=resumed)
