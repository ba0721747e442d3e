"""What grows with the data, and what does not: starts, plans, opens, memory of the driver.

python -m benchmarks.scale [--quick] [--text-mb N]

Prints, last, one line of JSON. `reader_1e12_*`: the reader of rank 511 of 1,024 on the manifest of
1e12 tokens in 20,000 shards, without the data. `start_opens_per_rank`: files that a rank opens
before its first batch, with 8 and with 64 shards. `tokens_over_bare`: MB/s of the token stage on
two cores over two processes that read, cut and write the same text with numpy and pyarrow alone.
`driver_rss_4x_over_1x`: peak memory of the driver of the token stage with four times the text.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from smt_ray.config import DataConfig, RunConfig
from smt_ray.data.manifest import write_manifest
from smt_ray.data.reader import Reader, open_reader
from smt_ray.data.shards import WRITTEN, row_bytes, row_group_rows, to_column, token_schema
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokens import write_tokens

TOKENS, SHARDS, LENGTH, VOCABULARY = 10**12, 20_000, 320, 50_257
RANK, WORLD, BATCH = 511, 1024, 4096
STEPS = 200
"""Plans that are timed."""
FEW, MANY = 8, 64
"""Shards of the two directories whose opens are counted."""
TEXT_MB, QUICK_MB = 1024, 384
TURNS = 3
"""Turns of the token stage and of the bare loop; the median ratio counts."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=about)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MB} MB of text")
    parser.add_argument("--text-mb", type=int, help=f"megabytes of text ({TEXT_MB})")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(PARTS[options.part](options.place)))
        return 0
    size = options.text_mb or (QUICK_MB if options.quick else TEXT_MB)
    with tempfile.TemporaryDirectory(prefix="smt-ray-scale-") as directory:
        print(json.dumps(measure(Path(directory), size)))
    return 0


def measure(place: Path, megabytes: int) -> dict[str, Any]:
    """Return all figures; what holds memory or starts Ray is a process of its own."""
    write_large_manifest(place / "large")
    figures = alone("reader", place / "large")
    few, many = (opens(place / f"shards-{count}", count) for count in (FEW, MANY))
    assert few == many, f"a start opens {few} files of {FEW} shards, {many} of {MANY}"
    figures["start_opens_per_rank"] = few
    write_text(place / "text" / "4x", megabytes)
    write_text(place / "text" / "1x", megabytes // 4)
    turns = [turn(place) for _ in range(TURNS)]
    seconds = statistics.median(turn["tokens"] for turn in turns)
    return {
        **figures,
        "tokens_over_bare": statistics.median(turn["bare"] / turn["tokens"] for turn in turns),
        "tokens_mb_per_s": megabytes / seconds,
        "driver_rss_4x_over_1x": statistics.median(turn["rss"] for turn in turns),
    }


def turn(place: Path) -> dict[str, float]:
    """Time the bare loop and the token stage once; compare the drivers' memory."""
    seconds = bare(place / "text" / "4x", place / "bare")
    one, four = (alone("tokens", place / "text" / name) for name in ("1x", "4x"))
    # The start of Ray and of its processes is in both, so the difference is steady.
    steady = (four["seconds"] - one["seconds"]) / 0.75
    return {"bare": seconds, "tokens": steady, "rss": four["rss"] / one["rss"]}


def alone(part: str, place: Path) -> dict[str, Any]:
    """Return the figures of a part that runs in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part, "--place", str(place)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def write_large_manifest(place: Path) -> None:
    """Write the manifest of `TOKENS` tokens in `SHARDS` shards that are not there."""
    rows = TOKENS // LENGTH // SHARDS
    shards = {
        f"{unit:06d}-0000.parquet": {"rows": rows, "first_id": unit << 32, "bytes": 2 * rows * 321}
        for unit in range(SHARDS)
    }
    own = {"kind": "tokens", "split": "train", "targets": False}
    shape = {"sequence_length": LENGTH, "vocabulary": VOCABULARY}
    write_manifest(Location.of(place).make_dir(), {**own, **shape}, shards)


def reader(place: Path) -> dict[str, Any]:
    """Start the reader of one rank of many, and plan its batches."""
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    expected = {"sequence_length": LENGTH}
    settings = {"global_batch": BATCH, "seed": 0, "rank": RANK, "world": WORLD}
    reading = open_reader(Location.of(place), "tokens", expected, **settings)
    plan(reading, 0)
    start, after = time.perf_counter() - began, process.memory_info().rss
    began = time.perf_counter()
    for step in range(STEPS):
        plan(reading, step)
    seconds = (time.perf_counter() - began) / STEPS
    return {
        "reader_1e12_start_s": start,
        "reader_1e12_rss_mib": (after - before) / 2**20,
        "reader_1e12_plan_ms": 1000 * seconds,
    }


def plan(reading: Reader, step: int) -> None:
    """Find where each row of a batch lies."""
    reading.shards.find(reading.order.at(step, reading.columns))


def opens(place: Path, shards: int) -> int:
    """Return how many files a rank opens before it has its first batch."""
    write_text(place / "text", 8, files=shards)
    source = str(place / "text" / "*.txt")
    data = DataConfig(source=source, sequence_length=LENGTH, validation_fraction=1 / shards)
    tokens = Location.of(place / "tokens")
    write_locally(data, tokens)
    opened = []
    whole = Location.open

    def counted(file: Location) -> Any:
        opened.append(file.path)
        return whole(file)

    Location.open = counted  # type: ignore[method-assign, assignment]
    try:
        settings = {"global_batch": 8, "seed": 0, "rank": 3, "world": 8}
        open_reader(tokens / "train", "tokens", {}, **settings).batch(0)
        return 1 + len(opened)  # the manifest
    finally:
        Location.open = whole  # type: ignore[method-assign]


def write_locally(data: DataConfig, target: Location) -> None:
    """Run the token stage in a Ray of this process's own."""
    import ray

    from smt_ray.cluster.session import connect

    connect(RunConfig(data=data))
    write_tokens(plan_source(data), target)
    ray.shutdown()


def write_text(place: Path, megabytes: float, files: int = 16) -> None:
    """Write text, the standard library's again and again, in some files of equal size."""
    if place.exists():
        return
    place.mkdir(parents=True)
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(path.read_bytes() for path in library)
    text = text.decode(errors="ignore").encode()
    size = int(megabytes * 10**6) // files
    for number in range(files):
        with (place / f"{number:03d}.txt").open("wb") as file:
            for start in range(0, size, len(text)):
                file.write(text[: size - start])


def bare(place: Path, target: Path) -> float:
    """Return the seconds in which two processes read, cut and write the text, without Ray."""
    target.mkdir()
    files = sorted(place.glob("*.txt"))
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(os.path.getsize, files))  # both processes are there
        began = time.perf_counter()
        list(pool.map(_pack, files, [target / f"{file.stem}.parquet" for file in files]))
        seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def _pack(file: Path, target: Path) -> None:
    text = np.frombuffer(file.read_bytes(), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(text, LENGTH + 1)[::LENGTH]
    covered = pa.array(np.full(len(windows), LENGTH, np.int32))
    columns = [pa.array(np.arange(len(windows))), to_column(windows), covered]
    table = pa.Table.from_arrays(columns, schema=token_schema(LENGTH, 256))
    rows = row_group_rows(row_bytes(table.schema))
    pq.write_table(table, target, row_group_size=rows, **WRITTEN)


def tokens(place: Path) -> dict[str, Any]:
    """Run the token stage on two cores; return its seconds and the driver's peak memory."""
    data = DataConfig(source=str(place / "*.txt"), sequence_length=LENGTH)
    with tempfile.TemporaryDirectory(dir=place.parent) as target:
        began = time.perf_counter()
        write_locally(data, Location.of(target))
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"seconds": seconds, "rss": peak}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"reader": reader, "tokens": tokens}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
