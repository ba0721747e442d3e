"""The stage `tokens`: Ray Data reads or makes a source's sequences and writes token shards."""

import itertools
import logging
from typing import Any

import pyarrow.parquet as pq
import ray

from smt_ray.config import DataConfig, RunConfig, masked
from smt_ray.data import sources
from smt_ray.data.shards import CHECKSUMS, MANIFEST, Manifest, row_group_rows
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import Tokenizer

SHARD_ROW_GROUPS = 32

logger = logging.getLogger(__name__)


def write_tokens(config: RunConfig, target: Location) -> None:
    """Write `train/` and `validation/` token shards with their manifests, and the tokenizer.

    Every unit of work is one streaming task that holds one row group at a time and writes shards
    named after the unit, so the files are the same for the same configuration and source. What an
    unfinished earlier try left at `target` is removed.

    Raises:
        ValueError: naming the field at fault, if the source is unreadable or too short.
    """
    target.delete_dir()
    for split in sources.SPLITS:
        (target / split).make_dir()
    tokenizer = sources.load_tokenizer_of(config.data)
    tokenizer.save(target)
    units = [unit for group in sources.plan(config.data).values() for unit in group]
    resolved = sources.resolve(config.data)
    rows = ray.data.range(len(units), override_num_blocks=len(units))
    written = rows.map(lambda row: _write_or_explain(units[row["id"]], resolved, tokenizer, target))
    results = list(written.iter_rows())
    error = next((result["error"] for result in results if result["error"]), None)
    if error:
        raise sources.SourceError(error)
    for split in sources.SPLITS:
        mine = [result for result in results if result["split"] == split]
        _write_manifest(config.data, tokenizer, mine, target / split)


def _write_or_explain(
    unit: sources.Unit, config: DataConfig, tokenizer: Tokenizer, target: Location
) -> dict[str, Any]:
    """Write a unit; what is wrong with the source becomes a result, not a failed task."""
    try:
        return {"error": "", **_write_unit(unit, config, tokenizer, target)}
    except sources.SourceError as error:
        return {"error": str(error)}


def _write_unit(
    unit: sources.Unit, config: DataConfig, tokenizer: Tokenizer, target: Location
) -> dict[str, Any]:
    """Read, tokenise and write one unit; return its counts."""
    packer = sources.packer(unit, config, tokenizer)
    lists = 1 if config.kind == "text" else 2
    rows = row_group_rows(4 * lists * (config.sequence_length + 1))
    tables = packer.tables(sources.read(unit, config, tokenizer), rows)
    shards: dict[str, int] = {}
    for first in tables:
        name = f"{unit.index:06d}-{len(shards):04d}.parquet"
        file = target / unit.split / name
        shards[name] = 0
        with pq.ParquetWriter(
            file.path, first.schema, filesystem=file.filesystem, **CHECKSUMS
        ) as writer:
            for table in itertools.chain([first], itertools.islice(tables, SHARD_ROW_GROUPS - 1)):
                writer.write_table(table)
                shards[name] += len(table)
    return {
        "split": unit.split,
        "names": list(shards),
        "rows": list(shards.values()),
        "bytes": packer.bytes,
        "documents": packer.documents,
        "tokens": packer.tokens,
    }


def _write_manifest(
    config: DataConfig, tokenizer: Tokenizer, units: list[dict[str, Any]], directory: Location
) -> None:
    """Add up the counts of one split's units and write them as its manifest."""
    split = directory.name
    counts = {name: sum(unit[name] for unit in units) for name in ("bytes", "documents", "tokens")}
    shards = {
        name: rows for unit in units for name, rows in zip(unit["names"], unit["rows"], strict=True)
    }
    if not shards:
        raise sources.too_short(config, split, counts["tokens"])
    sequences = sum(shards.values())
    manifest: Manifest = {
        "kind": "tokens",
        "split": split,
        "sequences": sequences,
        "sequence_length": config.sequence_length,
        "vocabulary": tokenizer.vocabulary,
        "tokenizer": tokenizer.name,
        "source": masked(config.source),
        "targets": config.kind != "text",
        "documents": counts["documents"],
        "shards": dict(sorted(shards.items())),
    }
    if config.kind != "task":
        manifest["bytes"] = counts["bytes"]
    if config.kind == "pixels":
        manifest["image"] = sources.image_shape(config)
    (directory / MANIFEST).write_json(manifest)
    logger.info("%s: %d sequences of %s", split, sequences, masked(config.source))
