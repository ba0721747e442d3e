"""The stage `tokens`: Ray Data reads or makes a source's sequences and writes token shards."""

import hashlib
import itertools
import logging
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from smt_ray.config import DataConfig, masked
from smt_ray.data import sources
from smt_ray.data.manifest import MANIFEST, Manifest, check_shards, open_manifest, write_manifest
from smt_ray.data.shards import WRITTEN, regrouped, row_bytes, row_group_rows
from smt_ray.data.source_plan import SourcePlan
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import Tokenizer
from smt_ray.data.units import UNITS, Record, Try

SHARD_BYTES = 256 << 20
"""Size of a token shard at most; a small unit makes a smaller one."""

logger = logging.getLogger(__name__)


def write_tokens(plan: SourcePlan, target: Location) -> dict[str, Any]:
    """Write `train/` and `validation/` token shards with their manifests, and the tokenizer.

    Every unit of work is one streaming task that holds one row group at a time and writes shards
    named after the unit, so the files are the same for the same configuration and source. Units
    that an unfinished earlier try has finished are used as they are; what else it left at `target`
    is removed. The first error ends the stage.

    Returns:
        `sequences` by split, `vocabulary`, and `digest`: a digest of all rows that were written.

    Raises:
        ValueError: naming the field at fault, if the source is unreadable or too short.
    """
    written = all((target / split / MANIFEST).exists() for split in sources.SPLITS)
    if not written or (target / UNITS).exists():  # else only the artifact's own manifest is missing
        _write(plan, target)
    splits = {name: open_manifest(target / name, "tokens") for name in sources.SPLITS}
    for name, manifest in splits.items():
        check_shards(target / name, manifest)
    digests = [(name, manifest["digest"]) for name, manifest in splits.items()]
    vocabulary = splits["train"]["vocabulary"]
    parts = repr((digests, vocabulary, plan.tokenizer.digest)).encode()
    return {
        "sequences": {name: manifest["sequences"] for name, manifest in splits.items()},
        "vocabulary": vocabulary,
        "digest": hashlib.sha256(parts).hexdigest()[:16],
    }


def _write(plan: SourcePlan, target: Location) -> None:
    units, fingerprints = plan.units, plan.unit_fingerprints
    settings = asdict(plan.config) | {"tokenizer": plan.tokenizer.digest}
    run = Try(target, settings, sources.SPLITS)
    plan.tokenizer.save(target)
    left = [n for n, fingerprint in enumerate(fingerprints) if fingerprint not in run.done]
    found = run.elsewhere(fingerprints[n] for n in left)
    if len(left) < len(units) or found:
        kept = len(units) - len(left) + len(found)
        logger.info("tokens: %d of %d units are there from an earlier try", kept, len(units))
    todo = [
        UnitTask(units[n], fingerprints[n], *found.get(fingerprints[n], (None, None))) for n in left
    ]
    try:
        made = _make_all(todo, Work(plan.config, plan.tokenizer, target))
        records = run.done | {record.fingerprint: record for record in made}
        for split in sources.SPLITS:
            mine = [records[f] for f in fingerprints if records[f].split == split]
            _write_manifest(plan, mine, target / split)
    except ValueError:
        run.fail()
        raise
    run.finish()


class UnitTask(NamedTuple):
    """A unit to make, or to copy from where an earlier try has it."""

    unit: sources.Unit
    fingerprint: str
    record: Record | None = None
    location: Location | None = None


def _make_all(tasks: list[UnitTask], work: "Work") -> Iterator[Record]:
    """Yield the records of the units as they are made.

    Raises:
        ValueError: what is wrong with the first unit that is bad; no other is waited for.
    """
    if not tasks:
        return
    rows = [{"task": pickle.dumps(task)} for task in tasks]  # a task holds its own unit alone
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    results = data.map(lambda row: work.explained(pickle.loads(row["task"])))
    # Nothing is fetched ahead: an error is seen when its unit ends, not when the next one does.
    batches = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for result in (row for batch in batches for row in cast(pa.Table, batch).to_pylist()):
        if result["error"]:
            raise sources.SourceError(result["error"])
        yield pickle.loads(result["record"])


@dataclass(frozen=True, slots=True)
class Work:
    """What every task does with its unit."""

    config: DataConfig
    tokenizer: Tokenizer
    target: Location

    def explained(self, task: UnitTask) -> dict[str, Any]:
        """Make a unit; what the user can mend becomes a result, not a failed task."""
        try:
            return {"error": "", "record": pickle.dumps(self._make(task))}
        except sources.SourceError as error:
            return {"error": str(error), "record": b""}
        except OSError as error:
            said = " ".join(str(error).split())
            mend = "make room or mend it; the same command goes on from there"
            return {"error": f"storage: {self.target}: {said}; {mend}", "record": b""}

    def _make(self, task: UnitTask) -> Record:
        if task.record and task.location:
            try:
                task.record.copy(task.location, self.target)
            except FileNotFoundError:  # its try was finished or deleted meanwhile
                gone = task.location.name, task.fingerprint
                logger.info("%s: unit %s is gone; it is made anew", *gone)
            else:
                return task.record
        record = self._write(task.unit, task.fingerprint)
        record.write(self.target)
        return record

    def _write(self, unit: sources.Unit, fingerprint: str) -> Record:
        """Read, tokenise and write one unit."""
        packer = sources.packer(unit, self.config, self.tokenizer)
        schema = packer.schema
        rows = row_group_rows(row_bytes(schema))
        groups = max(1, SHARD_BYTES // (rows * row_bytes(schema)))
        made = packer.tables(sources.read(unit, self.config, self.tokenizer), rows)
        tables = regrouped(made, rows)  # all row groups but the last are whole
        shards: dict[str, dict[str, int]] = {}
        digest = hashlib.sha256()
        for first in tables:
            name = f"{unit.index:06d}-{len(shards):04d}.parquet"
            count = 0
            with (self.target / unit.split / name).published() as file, file.output() as sink:
                with pq.ParquetWriter(sink, schema, **WRITTEN) as writer:
                    for table in itertools.chain([first], itertools.islice(tables, groups - 1)):
                        writer.write_table(table)
                        for batch in table.combine_chunks().to_batches():
                            digest.update(batch.serialize())
                        count += len(table)
                size = sink.tell()
            begins = first["sequence_id"][0].as_py()
            shards[name] = {"rows": count, "first_id": begins, "bytes": size}
        counted = "bytes", "documents", "tokens", "targets"
        counts = {name: getattr(packer, name) for name in counted}
        return Record(
            fingerprint=fingerprint,
            split=unit.split,
            shards=shards,
            digest=digest.hexdigest(),
            **counts,
        )


def _write_manifest(plan: SourcePlan, units: list[Record], directory: Location) -> None:
    """Add up the counts of one split's units and write them as its manifest."""
    config, tokenizer, split = plan.config, plan.tokenizer, directory.name
    shards = {name: shard for unit in units for name, shard in unit.shards.items()}
    if not shards:
        raise sources.too_short(config, split, sum(unit.tokens for unit in units))
    fields: Manifest = {
        "kind": "tokens",
        "split": split,
        "sequence_length": config.sequence_length,
        "vocabulary": tokenizer.vocabulary,
        "tokenizer": tokenizer.name,
        "source": masked(config.source),
        "targets": max(unit.targets for unit in units),
        "documents": sum(unit.documents for unit in units),
        "digest": hashlib.sha256("".join(unit.digest for unit in units).encode()).hexdigest(),
    }
    if config.kind != "task":
        fields["bytes"] = sum(unit.bytes for unit in units)
    if config.kind == "pixels":
        images = sources.images_in(config)
        fields["image"] = images.height, images.width
    manifest = write_manifest(directory, fields, shards)
    logger.info("%s: %d sequences of %s", split, manifest["sequences"], masked(config.source))
