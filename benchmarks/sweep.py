"""What a sweep saves by sharing, and what it loses when it is killed.

python -m benchmarks.sweep [--quick] [--storage DIR]

`seconds_shared_over_unshared`: eight trials that differ in the RNN's own cell and in DMT alone,
which share one teacher and one label set, over eight times one whole run from scratch (the mean of
one before and one after), all one after the other. `resumed_trials_lost`: finished trials that are
not kept as they were, or are run again, when a sweep is killed by SIGKILL in its middle and gone on
with. Prints, last, one line of JSON; all else goes to stderr.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SPACE = ("transition.cell=transformer,mlp", "transition.cell-depth=1,2", "dmt.visits=4,8")
KILLED = ("dmt.visits=2,4,8",)
"""The space of the sweep that is killed once the first of its trials has finished."""
SMALL = (
    *("--model.width=32", "--model.encoder-depth=2", "--model.cell-depth=1", "--loss.horizon=8"),
    *("--data.sequence-length=64", "--labels.fraction=0.01", "--optimizer.validation-sequences=64"),
    *("--transition.steps=60"),
    *("--dmt.steps=120", "--evaluation.sequences=64"),
    *("--evaluation.sample-length=32", "--runtime.workers=1", "--runtime.gang-ranks=1"),
    *("--concurrent=1", "--no-early-stop"),
)
STEPS = {True: 1500, False: 4000}
"""The teacher's steps, with --quick and without."""
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}


def main(arguments: Sequence[str]) -> int:
    """Run, kill, go on, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description="Measure what a sweep saves by sharing, and what it loses when it is killed.",
    )
    parser.add_argument("--quick", action="store_true", help="a shorter teacher: ten minutes")
    parser.add_argument("--storage", help="directory that is kept; by default a temporary one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="smt-ray-sweep-") as temporary:
        storage = Path(options.storage or temporary)
        print(json.dumps(measure(storage, STEPS[options.quick])))
    return 0


def measure(storage: Path, steps: int) -> dict[str, Any]:
    """Return the figures; artifacts go below `storage`."""
    teacher = (f"--teacher.steps={steps}", f"--optimizer.validate-every={steps // 2}")
    one = [f"{part.partition('=')[0]}={part.partition('=')[2].split(',')[0]}" for part in SPACE]
    before, _ = timed_sweep(storage / "before", "alone", one, teacher)
    shared, summary = timed_sweep(storage / "shared", "shared", SPACE, teacher)
    after, _ = timed_sweep(storage / "after", "alone", one, teacher)
    unshared = (before + after) / 2  # on either side, for the machine may have become slower
    return {
        "trials": summary["trials"],
        "label_sets": summary["label_sets"],
        "seconds_shared_over_unshared": shared / (summary["trials"] * unshared),
        "resumed_trials_lost": trials_lost(storage / "shared", teacher),
        "seconds_shared": shared,
        "seconds_one_run": unshared,
        "best_rnn_bits": summary["best_rnn_bits"],
    }


def timed_sweep(
    storage: Path, name: str, space: Sequence[str], flags: Sequence[str]
) -> tuple[float, dict[str, Any]]:
    """Run a sweep; return its wall time in seconds, start-up of Ray and all, and its summary."""
    began = time.monotonic()
    subprocess.run(command(storage, name, space, flags), check=True, **_process())
    took = time.monotonic() - began
    summary = json.loads((storage / name / "summary.json").read_text())
    assert summary["finished"] == summary["trials"], summary
    return took, summary


def trials_lost(storage: Path, flags: Sequence[str]) -> int:
    """Kill a sweep once a trial has finished, go on; return how many finished ones are lost."""
    words = command(storage, "killed", KILLED, flags)
    with subprocess.Popen(words, **_process()) as process:
        while not (before := finished(storage)):
            assert process.poll() is None, "the sweep ended before it was killed"
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    subprocess.run([*words, "--resume"], check=True, **_process())
    after = finished(storage)
    assert len(after) == 3
    return sum(after.get(name) != content for name, content in before.items())


def finished(storage: Path) -> dict[str, tuple[str, int]]:
    """Return the records of the killed sweep's finished trials, and when they were written.

    A trial that ran again would write its own again.
    """
    files = sorted((storage / "killed" / "trials").glob("*.json"))
    texts = {file.name: (file.read_text(), file.stat().st_mtime_ns) for file in files}
    return {name: t for name, t in texts.items() if json.loads(t[0])["status"] == "finished"}


def command(storage: Path, name: str, space: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return the command of a sweep."""
    varied = [word for part in space for word in ("--space", part)]
    place = ["--storage", str(storage), "--name", name]
    return [sys.executable, "jobs/sweep.py", *place, *varied, *SMALL, *flags]


def _process() -> dict[str, Any]:
    return {"cwd": ROOT, "env": os.environ | ENVIRONMENT, "stdout": sys.stderr}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
