"""Points of a study: one JSON file each; a study that goes on makes those that are missing."""

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.terminal import duration

logger = logging.getLogger(__name__)
Row = dict[str, Any]

_APART = ("name", "storage", "preset", "evaluation")


def kept(
    directory: Location,
    name: str,
    settings: Mapping[str, Any],
    make: Callable[[], Row],
    turn: str = "",
) -> Row:
    """Return the point `name` under these settings: from its file in `directory`, or made now.

    `turn`, as "3 of 11", says how far the study is.
    """
    said = f"{turn}: {name}" if turn else name
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    file = directory / f"{name}-{mark}.json"
    if file.exists():
        logger.info("%s: found", said)
        return file.read_json()
    began = time.monotonic()
    row = make()
    directory.make_dir()
    file.write_json(row)
    logger.info("%s: made in %s", said, duration(time.monotonic() - began))
    return row


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return what of a run decides how fast it is, and what comes out."""
    return {name: value for name, value in config.to_dict().items() if name not in _APART}


def write_csv(file: Location, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as a CSV file; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(buffer.getvalue())
