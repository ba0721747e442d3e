"""What the label chain costs, stored and streamed, and what its processes hold.

python -m benchmarks.labels [--quick] [--only FIGURE ...]

Prints, last, one line of JSON. `factory_over_bare`: labels/s of the chain from token shards to
label shards, one gang of one rank, over a bare loop around the same encoder, one torch thread each,
in turns; the median. `stream_over_store`: steps/s of the transition's training on streamed labels,
whose gang has a process of its own, over those on stored ones, in turns; `stream_bottleneck`: which
of both is slower alone, the gang or the trainer. `stream_loss_difference`: the largest of a step,
of bf16 labels. `pss_4x_over_1x`: peak memory of all processes with four times the rows, where the
object store is smaller than the labels of either. `rank_parameter_share`: share of the encoder that
a rank of two holds. `bytes_per_label`: on disk. `resume_recomputed_share`: labels that are made a
second time after a kill at half of them, over all.

The networks have the preset `paper`'s widths and depths, sequences are short. With --quick memory
and resumption are those of a tiny encoder with wide memories. All else goes to stderr.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chain import run_and_measure
from benchmarks.label_parts import MODULE, prepare
from benchmarks.paper import SHORT
from benchmarks.turns import Side, alone, command, environment, kill
from smt_ray.cluster.interruption import handled
from smt_ray.config import RunConfig
from smt_ray.config.presets import preset
from smt_ray.data.manifest import open_manifest
from smt_ray.data.storage import PART, Location

TURNS, QUICK_TURNS = 12, 4
GANG_BATCH, BATCH = 16, 2
"""Sequences that a gang encodes at once; those of a step of the transition."""
BATCHES, STEPS, WARM = 25, 16, 4
"""A gang's batches in a turn; steps of the transition in one; either before the first turn."""
SETTLED_S = 3.0
"""Seconds in which a gang makes up for what a turn has used."""
STORE_BYTES = 512 << 20
"""Object store where memory is measured."""
LABEL_BYTES = 2 << 30
"""Labels of the smaller one of both measurements of memory."""
RESUMED = 1 << 13
"""Sequences whose labels are interrupted: enough for many label shards."""
CHANGES: dict[str, Any] = {
    "optimizer": {"validate_every": 1 << 20, "validation_sequences": BATCH},
    "transition": {"global_batch": BATCH},
    "dmt": {"global_batch": BATCH},
    "runtime": {"workers": 1, "gang_batch": GANG_BATCH, "log_every": 1},
}
WIDE: dict[str, Any] = {
    "model": {"width": 32, "heads": 1, "encoder_depth": 1, "cell_depth": 1, "decoder_depth": 1},
    "labels": {"dtype": "float32"},
    "runtime": {"gang_batch": 64},
}
"""A tiny encoder, whose memories have 2 KiB."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="ten minutes of two cores")
    parser.add_argument("--only", nargs="+", choices=FIGURES, help="some of the figures")
    options = parser.parse_args(arguments)
    os.environ.update(environment())
    config = preset("paper").update(SHORT).update(CHANGES)
    figures: dict[str, Any] = {}
    with handled(), tempfile.TemporaryDirectory(prefix="smt-ray-labels-") as directory:
        for name in options.only or FIGURES:
            figures |= FIGURES[name](Path(directory), config, options.quick)
            print(f"{name}: {figures}", file=sys.stderr)
    print(json.dumps(figures))
    return 0


def factory_figures(root: Path, config: RunConfig, quick: bool) -> dict[str, Any]:
    """Compare the chain with the encoder alone."""
    turns = QUICK_TURNS if quick else TURNS
    place = root / "paper"
    prepare(place, config, int(GANG_BATCH * (turns * BATCHES + 4 * WARM) / 0.9))
    with Side(MODULE, "chain", place) as chain, Side(MODULE, "bare", place) as bare:
        bare.start()
        chain.take(WARM)
        bare.take(WARM)
        ratios = []
        for _ in range(turns):
            ratios.append(chain.take(BATCHES).rate / bare.take(BATCHES).rate)
            print(f"factory_over_bare: {ratios[-1]:.3f}", file=sys.stderr)
        bare.end()
        chain.result()
    return {"factory_over_bare": statistics.median(ratios)}


def stream_figures(root: Path, config: RunConfig, quick: bool) -> dict[str, Any]:
    """Compare the transition's training on streamed labels with that on stored ones."""
    turns = (QUICK_TURNS if quick else TURNS) - 1
    place, ratios, rates = root / "paper", [], []
    own = config.override("transition.steps", WARM + turns * STEPS + 1)
    prepare(place, own, 2 * BATCH * (WARM + turns * STEPS))
    with Side(MODULE, "bare", place) as encoder:
        encoder.take(2)
        gang = encoder.take(8).rate
    with Side(MODULE, "stored", place) as stored, Side(MODULE, "streamed", place) as streamed:
        stored.take(WARM)
        streamed.take(WARM)
        for _ in range(turns):
            time.sleep(SETTLED_S)
            rates.append(stored.take(STEPS).rate)
            ratios.append(streamed.take(STEPS).rate / rates[-1])
            print(f"stream_over_store: {ratios[-1]:.3f}", file=sys.stderr)
        losses = [side.result()["losses"] for side in (stored, streamed)]
    trainer = statistics.median(rates) * BATCH * config.data.sequence_length
    print(f"labels/s: gang {gang:.0f}, trainer {trainer:.0f}", file=sys.stderr)
    return {
        "stream_over_store": statistics.median(ratios),
        "stream_bottleneck": "trainer" if gang > trainer else "gang",
        "stream_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }


def format_figures(root: Path, config: RunConfig, quick: bool) -> dict[str, Any]:
    """Look at label shards of all number formats, and at the ranks of a gang."""
    place = root / "formats"
    prepare(place, config, 64 * GANG_BATCH)
    return alone(MODULE, "formats", place / "part")


def memory_figures(root: Path, config: RunConfig, quick: bool) -> dict[str, Any]:
    """Compare the peak memory of the chain on four times the rows with that on one."""
    config = config.update(WIDE if quick else {})
    peaks = []
    for times in (1, 4):
        place = root / f"memory-{times}"
        prepare(place, config, times * LABEL_BYTES // row_bytes(config) + 1)
        capped = f"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES={STORE_BYTES}"
        peaks.append(run_and_measure(["env", capped, *command(MODULE, "plain", place / "part")]))
        print(f"peak of {times}x: {peaks[-1] / 2**20:.0f} MiB", file=sys.stderr)
        shutil.rmtree(place)
    return {"pss_4x_over_1x": peaks[1] / peaks[0]}


def row_bytes(config: RunConfig) -> int:
    """Return the bytes of the labels of a sequence."""
    model, item = config.model, 4 if config.labels.dtype == "float32" else 2
    return config.data.sequence_length * model.memory_tokens * model.width * item


def resume_figures(root: Path, config: RunConfig, quick: bool) -> dict[str, Any]:
    """Kill the chain and its Ray at half of the labels, and give the same command again."""
    config = config.update(WIDE if quick else {})
    place = root / "resumed"
    prepare(place, config, RESUMED)
    whole, there = RESUMED * row_bytes(config), place / "labels"
    process = subprocess.Popen(command(MODULE, "plain", place / "part"), stdout=sys.stderr)
    try:
        while sum(file.stat().st_size for file in there.glob("*/*.parquet")) < whole / 2:
            assert process.poll() is None, "it has ended before half of the labels"
            time.sleep(0.05)
    finally:
        kill(process.pid)
        process.wait()
    made = {file: file.stat().st_mtime_ns for file in there.glob("*/*.parquet")}
    begun = len([*there.glob(f"*/*{PART}")])
    alone(MODULE, "plain", place / "part")
    manifest = open_manifest(Location.of(there / "train"), "labels")
    shard = max(shard["rows"] for shard in manifest["shards"].values())
    again = begun + sum(file.stat().st_mtime_ns != then for file, then in made.items())
    print(f"{len(made)} shards made, {begun} begun, {again} made again", file=sys.stderr)
    return {"resume_recomputed_share": again * shard / RESUMED}


FIGURES: dict[str, Callable[[Path, RunConfig, bool], dict[str, Any]]] = {
    "factory": factory_figures,
    "stream": stream_figures,
    "formats": format_figures,
    "memory": memory_figures,
    "resume": resume_figures,
}
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
