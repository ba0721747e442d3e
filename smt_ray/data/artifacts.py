"""Content-addressed results of stages: made once, found again by any run with the same settings.

`<storage>/artifacts/<stage>-<fingerprint>/` holds a stage's files; its `manifest.json` is written
last, so a directory without one is unfinished. The fingerprint covers the scientific settings that
the stage depends on and the fingerprints of what it was made from.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
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


def fingerprint(stage: str, settings: dict[str, Any], upstream: Sequence[Artifact]) -> str:
    """Hash what decides a stage's result: its settings and its inputs."""
    parts = {
        "format": FORMAT,
        "stage": stage,
        "settings": settings,
        "upstream": [artifact.fingerprint for artifact in upstream],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def make(
    storage: Location,
    stage: str,
    settings: dict[str, Any],
    upstream: Sequence[Artifact],
    build: Callable[[Location, str], dict[str, Any]],
) -> Artifact:
    """Return the stage's artifact: the finished one if it is there, else built or gone on with.

    Args:
        storage: the root of all runs.
        stage: name of the stage.
        settings: the settings that decide its result, JSON values.
        upstream: the artifacts it is made from.
        build: given the artifact's place and fingerprint, writes its files and returns its figures;
            called again on an unfinished place, it goes on.
    """
    mark = fingerprint(stage, settings, upstream)
    place = storage / "artifacts" / f"{stage}-{mark}"
    manifest_file = place / MANIFEST
    if manifest_file.exists():
        return Artifact(stage, mark, place, manifest_file.read_json(), True, False)
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
    manifest_file.write_json(manifest)
    return Artifact(stage, mark, place, manifest, False, resumed)
