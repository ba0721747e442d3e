"""The manifest of a directory of shards: all that a reader needs before it opens one of them."""

from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smt_ray.data.order import Integers
from smt_ray.data.shards import (
    label_schema,
    mend,
    open_parquet,
    row_bytes,
    row_group_rows,
    token_schema,
    whole,
)
from smt_ray.data.storage import Location

MANIFEST = "manifest.json"

Manifest = dict[str, Any]


def open_manifest(
    directory: Location, kind: Literal["tokens", "labels"], **expected: Any
) -> Manifest:
    """Read a shard directory's manifest.

    Args:
        directory: where the manifest and the shards are.
        kind: what the caller needs.
        **expected: manifest fields that the caller depends on, such as `sequence_length=128`; for
            labels also `encoder`, the fingerprint of the teacher that must have made them.

    Raises:
        ValueError: in one line that names the file, if it is missing or has another value for an
            expected field.
    """
    location = directory / MANIFEST
    try:
        manifest: Manifest = location.read_json()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{location}: no such file; run the stage that makes {kind}") from error
    except ValueError as error:
        raise ValueError(f"{location}: not JSON; {mend(location)}") from error
    if not isinstance(manifest, dict) or not {"sequence_length", "shards"} <= manifest.keys():
        raise ValueError(f"{location}: has no sequence_length and shards; {mend(location)}")
    for name, value in {"kind": kind, **expected}.items():
        found = manifest.get(name)
        if found != value:
            raise ValueError(
                f"{location}: {name}={found!r}, but this run needs {value!r}; "
                f"make the {kind} anew with this run's settings, or use the others"
            )
    return manifest


def write_manifest(
    directory: Location, fields: Manifest, shards: dict[str, dict[str, int]]
) -> Manifest:
    """Write and return the manifest of shards that are there, each with what a reader needs of it.

    Args:
        directory: the shards.
        fields: all else that the manifest says.
        shards: `rows`, `first_id` and `bytes` of each, by name.
    """
    rows = {"sequences": sum(shard["rows"] for shard in shards.values())}
    group = {"row_group_rows": row_group_rows(row_bytes(schema_of(fields)))}
    manifest = {**fields, **rows, **group, "shards": dict(sorted(shards.items()))}
    (directory / MANIFEST).write_json(manifest)
    return manifest


def check_shards(directory: Location, manifest: Manifest) -> None:
    """Compare the sizes of a directory's shards with the manifest: one listing, no file is opened.

    Raises:
        ValueError: naming the first shard that is missing or truncated.
    """
    sizes = directory.sizes(".parquet")
    for name, shard in manifest["shards"].items():
        file = directory / name
        if name not in sizes:
            raise ValueError(f"{file}: the shard is missing; {mend(file)}")
        if sizes[name] != shard["bytes"]:
            rule = f"{sizes[name]} bytes, but {shard['bytes']} in the manifest"
            raise ValueError(f"{file}: the shard is truncated or foreign ({rule}); {mend(file)}")


def schema_of(manifest: Manifest) -> pa.Schema:
    """Return the columns that the shards of a manifest have."""
    length, targets = manifest["sequence_length"], manifest["targets"] > 0
    vocabulary = manifest["vocabulary"]
    if manifest["kind"] == "tokens":
        covers = not targets or "bytes" in manifest
        return token_schema(length, vocabulary, targets=targets, covers=covers)
    shape = (manifest["memory_tokens"], manifest["width"], manifest["dtype"])
    return label_schema(length, vocabulary, *shape, targets=targets)


class Shards:
    """The shards of a directory in the order of their names, opened when they are read.

    Rows are numbered through all of them.
    """

    def __init__(self, directory: Location, manifest: Manifest) -> None:
        """Read nothing yet."""
        self.directory, self.manifest = directory, manifest
        self.names = sorted(manifest["shards"])
        rows = [manifest["shards"][name]["rows"] for name in self.names]
        self.starts = np.concatenate(([0], np.cumsum(rows, dtype=np.int64)))

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return int(self.starts[-1])

    @cached_property
    def schema(self) -> pa.Schema:
        """Their columns."""
        return schema_of(self.manifest)

    def find(self, rows: Integers) -> tuple[Integers, Integers]:
        """Return the number of the shard, and the row in it, of each of `rows`."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return shard, rows - self.starts[shard]

    def open(self, number: int) -> pq.ParquetFile:
        """Open a shard.

        Raises:
            ValueError: in one line, if it is missing, damaged, or not what the manifest says.
        """
        file = self.directory / self.names[number]
        with whole(file):
            shard = open_parquet(file.open())
            found, rows = shard.schema_arrow, shard.metadata.num_rows
        if {f.name: f.type for f in found} != {f.name: f.type for f in self.schema}:
            columns = ", ".join(f"{field.name}: {field.type}" for field in found)
            rule = f"foreign shard with columns ({columns}); remove it or {mend(file)}"
            raise ValueError(f"{file}: {rule}")
        listed = self.manifest["shards"][self.names[number]]["rows"]
        if rows != listed:
            raise ValueError(f"{file}: {rows} rows, but {listed} in the manifest; {mend(file)}")
        return shard

    def table(self, number: int, first: int, rows: int) -> pa.Table:
        """Return consecutive rows of a shard.

        Raises:
            ValueError: in one line, if it is missing, damaged, or not what the manifest says.
        """
        size = self.manifest["row_group_rows"]
        groups = range(first // size, -(-(first + rows) // size))
        shard = self.open(number)
        with whole(self.directory / self.names[number]):
            table = shard.read_row_groups([*groups])
        return table.slice(first - groups.start * size, rows)
