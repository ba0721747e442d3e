"""What Ray Train, the reader and DeepSpeed cost a training, and what a dead worker costs it.

python -m benchmarks.training [--quick] [--turns N] [--only FIGURE ...]

Prints, last, one line of JSON. `ray_over_bare`: tokens/s of the teacher's training, world 1, over
those of a bare PyTorch loop with the same objective, one torch thread each, in turns; the median.
`checkpoint_stall_share`: share of a minute by which one checkpoint delays the steps from it on.
`recovery_seconds`: from SIGKILL of the training worker until a step is done that was not done
before; `lost_steps`: steps that are taken again for it. `elastic_loss_difference`: the largest
difference of a step's loss between two workers and one, at the same global batch.

The networks have the preset `paper`'s widths and depths; batch and length are such that a step
takes a second or two of one core. All else goes to stderr.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.memory import Stored
from benchmarks.paper import SHORT, VOCABULARY
from benchmarks.scale import write_text
from benchmarks.turns import Gate, Side, add_part, alone
from smt_ray.cluster.interruption import handled
from smt_ray.cluster.session import connect
from smt_ray.config import RunConfig
from smt_ray.config.presets import preset
from smt_ray.data.reader import Stream
from smt_ray.data.rows import Batch
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokens import write_tokens
from smt_ray.train.checkpoint import State
from smt_ray.train.metrics import read_metrics
from smt_ray.train.programs import TeacherProgram
from smt_ray.train.trainer import fit

MODULE = "benchmarks.training"
TURNS, QUICK_TURNS = 12, 4
EVERY = 16
"""Steps from checkpoint to checkpoint."""
BEFORE = 8
"""Steps of a turn: they end right before the checkpoint."""
AFTER = EVERY - BEFORE
"""Steps from the checkpoint on, in which its upload ends."""
REST = 2
"""Steps after the last turn's and the one in whose midst the worker is killed."""
ELASTIC = 8
"""Steps that two workers and one take."""
HELD = 32
"""Batches of the bare loop, in memory."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TURNS} turns")
    parser.add_argument("--turns", type=int, help=f"turns of both loops ({TURNS})")
    parser.add_argument("--only", nargs="+", choices=FIGURES, help="some of the figures")
    add_part(parser, PARTS)
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(PARTS[options.part](options.place)))
        return 0
    turns = options.turns or (QUICK_TURNS if options.quick else TURNS)
    figures: dict[str, float] = {}
    with handled(), tempfile.TemporaryDirectory(prefix="smt-ray-training-") as directory:
        place = Path(directory)
        write_text(place / "text", 2)
        (place / "config.json").write_text(json.dumps(configured(place, turns).to_dict()))
        for name in options.only or FIGURES:
            figures |= FIGURES[name](place, turns)
    print(json.dumps(figures))
    return 0


def loop_figures(place: Path, turns: int) -> dict[str, float]:
    """Compare our loop with a bare one, then kill our worker."""
    with Side(MODULE, "ours", place) as ours, Side(MODULE, "bare", place) as bare:
        ours.take(AFTER)  # it is warm then, and has written the tokens
        bare.take(2)
        found = [turn(ours, bare) for _ in range(turns)]
        bare.end()
        recovery = killed(ours)
    ratios, stalls = zip(*found, strict=True)
    return {
        "ray_over_bare": statistics.median(ratios),
        "checkpoint_stall_share": statistics.median(stalls) / 60,
        **recovery,
    }


def elastic_figures(place: Path, turns: int) -> dict[str, float]:
    """Compare two workers with one."""
    return alone(MODULE, "elastic", place / "elastic")


def turn(ours: Side, bare: Side) -> tuple[float, float]:
    """Return our tokens/s over the bare loop's, and the seconds that a checkpoint took."""
    plain, own = bare.take(BEFORE).rate, ours.take(BEFORE - 1).rate
    after = ours.take(1 + AFTER)  # the first one ends with the checkpoint
    stall = sum(after.seconds) - after.rows / own
    print(f"steps/s: {own:.3f}, bare {plain:.3f}; a checkpoint: {stall:.2f} s", file=sys.stderr)
    return own / plain, stall


def killed(ours: Side) -> dict[str, float]:
    """Kill the worker in the midst of a step; return what that costs."""
    done = ours.done + 1
    ours.open(done + REST)
    worker = ours.wait("open", done).process
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    new = ours.wait("asked", done + 1, besides=worker)
    again = min(note.step for note in ours.notes() if note.process == new.process)
    return {"recovery_seconds": new.at - began, "lost_steps": done - again}


def configured(place: Path, turns: int) -> RunConfig:
    """Return the run that is trained, on text in `place`."""
    steps = AFTER + EVERY * turns + 1 + REST
    own = {
        "data": {"source": str(place / "text" / "*.txt")},
        "loss": {"group": 2},  # two workers have one each
        "optimizer": {"validate_every": steps, "validation_sequences": 4},
        "teacher": {"steps": steps},
        "runtime": {"workers": 1, "checkpoint_every": EVERY, "log_every": 4},
    }
    return preset("paper").update(SHORT).update(own)


class GatedStream(Stream):
    """Another stream, without state, that gives a batch when its step may be taken."""

    def __init__(self, stream: Stream, place: Path) -> None:
        """Put a gate at `place` before `stream`."""
        self.stream, self.gate = stream, Gate(place)

    def batch(self, step: int) -> Batch:
        """Wait until the step may be taken; return its batch."""
        self.gate.wait(step)
        return self.stream.batch(step)

    def close(self) -> None:
        """Give up what is made ahead."""
        self.stream.close()


@dataclass(frozen=True)
class TeacherInTurns(TeacherProgram):
    """The teacher's training, behind a gate."""

    place: str = ""

    def stream(self, rank: int, world: int, saved: State | None, step: int) -> Stream:
        """Read the training tokens when it is this side's turn."""
        return GatedStream(super().stream(rank, world, saved, step), Path(self.place))


def read_run(place: Path) -> tuple[RunConfig, Location]:
    """Return the run whose part works in `place`, and where its tokens are."""
    config = RunConfig.from_dict(json.loads((place.parent / "config.json").read_text()))
    return config, Location.of(place.parent / "tokens")


def with_ray(place: Path) -> dict[str, float]:
    """Train as the pipeline does, in turns."""
    config, tokens = read_run(place)
    connect(config)
    write_tokens(plan_source(config.data), tokens)
    program = TeacherInTurns(config, tokens, VOCABULARY, place=str(place))
    fit(program, config.runtime, Location.of(place / "fit").make_dir())
    return {}


def elastic(place: Path) -> dict[str, float]:
    """Train with one worker, and with two."""
    config, tokens = read_run(place)
    connect(config.override("runtime.workers", 2))
    write_tokens(plan_source(config.data), tokens)
    one, two = (losses(config, tokens, place, workers) for workers in (1, 2))
    worst = max(abs(a - b) for a, b in zip(one, two, strict=True))
    return {"elastic_loss_difference": worst}


def losses(config: RunConfig, tokens: Location, place: Path, workers: int) -> list[float]:
    """Return the losses of the first steps."""
    own = {"teacher": {"steps": ELASTIC}, "runtime": {"workers": workers, "log_every": 1}}
    program = TeacherProgram(config.update(own), tokens, VOCABULARY)
    output = Location.of(place / f"workers-{workers}").make_dir()
    fit(program, program.config.runtime, output)
    found = [row["loss/total"] for row in read_metrics(output) if "loss/total" in row]
    assert len(found) == ELASTIC
    return found


def without(place: Path) -> dict[str, float]:
    """Train by PyTorch alone, on batches in memory, until killed."""
    torch.set_num_threads(1)
    program = TeacherProgram(*read_run(place), VOCABULARY)
    reader, train = program.rows("train", 0, 1), program.train
    stream = GatedStream(Stored([reader.batch(step) for step in range(HELD)]), place)
    objective = program.objective()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=train.learning_rate, fused=True)
    for step in itertools.count():
        batch = {**stream.batch(step), "step": torch.tensor(step)}
        objective(batch)["loss"].backward()
        clip_grad_norm_(objective.parameters(), train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError


FIGURES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "loop": loop_figures,
    "elastic": elastic_figures,
}
PARTS: dict[str, Callable[[Path], dict[str, float]]] = {
    "ours": with_ray,
    "bare": without,
    "elastic": elastic,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
