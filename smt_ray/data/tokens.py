"""The stage `tokens`: Ray Data reads or makes a source's sequences and writes token shards."""

import itertools
import logging
import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from smt_ray.config import DataConfig, RunConfig, masked
from smt_ray.data import sources
from smt_ray.data.shards import CHECKSUMS, MANIFEST, Manifest, row_group_rows
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import Tokenizer
from smt_ray.data.units import UNITS, Record, Try

SHARD_ROW_GROUPS = 32

logger = logging.getLogger(__name__)


def write_tokens(config: RunConfig, target: Location) -> None:
    """Write `train/` and `validation/` token shards with their manifests, and the tokenizer.

    Every unit of work is one streaming task that holds one row group at a time and writes shards
    named after the unit, so the files are the same for the same configuration and source. Units
    that an unfinished earlier try has finished are used as they are; what else it left at `target`
    is removed. The first error ends the stage.

    Raises:
        ValueError: naming the field at fault, if the source is unreadable or too short.
    """
    written = all((target / split / MANIFEST).exists() for split in sources.SPLITS)
    if written and not (target / UNITS).exists():  # only the artifact's own manifest is missing
        return
    tokenizer = sources.load_tokenizer_of(config.data)
    units = [unit for group in sources.plan(config.data).values() for unit in group]
    marks = sources.unit_marks(config.data, units, tokenizer)
    settings = asdict(sources.resolve(config.data)) | {"tokenizer": tokenizer.digest}
    run = Try(target, settings, sources.SPLITS)
    tokenizer.save(target)
    left = [n for n, mark in enumerate(marks) if mark not in run.done]
    found = run.elsewhere(marks[n] for n in left)
    if len(left) < len(units) or found:
        kept = len(units) - len(left) + len(found)
        logger.info("tokens: %d of %d units are there from an earlier try", kept, len(units))
    todo = [UnitTask(units[n], marks[n], *found.get(marks[n], (None, None))) for n in left]
    try:
        made = _make_all(todo, Work(sources.resolve(config.data), tokenizer, target))
        records = run.done | {record.mark: record for record in made}
        for split in sources.SPLITS:
            mine = [records[mark] for mark in marks if records[mark].split == split]
            _write_manifest(config.data, tokenizer, mine, target / split)
    except ValueError:
        run.fail()
        raise
    run.finish()


class UnitTask(NamedTuple):
    """A unit to make, or to copy from where an earlier try has it."""

    unit: sources.Unit
    mark: str
    record: Record | None = None
    place: Location | None = None


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
        if task.record and task.place:
            try:
                task.record.copy(task.place, self.target)
            except FileNotFoundError:  # its try was finished or deleted meanwhile
                logger.info("%s: unit %s is gone; it is made anew", task.place.name, task.mark)
            else:
                return task.record
        record = self._write(task.unit, task.mark)
        record.write(self.target)
        return record

    def _write(self, unit: sources.Unit, mark: str) -> Record:
        """Read, tokenise and write one unit."""
        packer = sources.packer(unit, self.config, self.tokenizer)
        lists = 1 if self.config.kind == "text" else 2
        rows = row_group_rows(4 * lists * (self.config.sequence_length + 1))
        tables = packer.tables(sources.read(unit, self.config, self.tokenizer), rows)
        shards: dict[str, int] = {}
        for first in tables:
            name = f"{unit.index:06d}-{len(shards):04d}.parquet"
            with (
                _whole(self.target / unit.split / name) as file,
                pq.ParquetWriter(
                    file.path, first.schema, filesystem=file.filesystem, **CHECKSUMS
                ) as writer,
            ):
                shards[name] = 0
                for table in itertools.chain(
                    [first], itertools.islice(tables, SHARD_ROW_GROUPS - 1)
                ):
                    writer.write_table(table)
                    shards[name] += len(table)
        counts = {name: getattr(packer, name) for name in ("bytes", "documents", "tokens")}
        return Record(mark=mark, split=unit.split, shards=shards, **counts)


@contextmanager
def _whole(file: Location) -> Iterator[Location]:
    """Give a place to write to, whose file appears at `file` at once when all of it is there."""
    if not file.is_local:  # an object store shows an object when its upload is complete
        yield file
        return
    part = Location(file.filesystem, f"{file.path}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        part.filesystem.move(part.path, file.path)
    finally:
        if part.exists():
            part.filesystem.delete_file(part.path)


def _write_manifest(
    config: DataConfig, tokenizer: Tokenizer, units: list[Record], directory: Location
) -> None:
    """Add up the counts of one split's units and write them as its manifest."""
    split = directory.name
    documents = sum(unit.documents for unit in units)
    shards = {name: rows for unit in units for name, rows in unit.shards.items()}
    if not shards:
        raise sources.too_short(config, split, sum(unit.tokens for unit in units))
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
        "documents": documents,
        "shards": dict(sorted(shards.items())),
    }
    if config.kind != "task":
        manifest["bytes"] = sum(unit.bytes for unit in units)
    if config.kind == "pixels":
        manifest["image"] = sources.image_shape(config)
    (directory / MANIFEST).write_json(manifest)
    logger.info("%s: %d sequences of %s", split, sequences, masked(config.source))
