"""The whole chain of the preset `tiny`, measured from outside: figures, seconds, peak memory.

python -m benchmarks.chain [--quick] [--seeds N] [FLAG OF jobs/pretrain_lm.py ...]

Prints, last, one line of JSON: `summary.json` of the first seed, `peak_pss_gib` over all seeds, and
for several seeds the mean, least and greatest of each figure in `REPEATED`. All else is on stderr.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PERIOD_S = 1.0
SHARE = 0.05
"""Share of the time that sampling may take: the machine's cores are the ones that are measured."""
REPEATED = ("teacher_bits", "rnn_bits_before_dmt", "rnn_bits", "drift", "wall_seconds")


def main(arguments: Sequence[str]) -> int:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chain",
        description="Measure the preset tiny from text to RNN in a fresh temporary storage.",
        epilog="Other flags go to jobs/pretrain_lm.py.",
    )
    parser.add_argument("--quick", action="store_true", help="one seed, the preset as it is")
    parser.add_argument("--seeds", type=int, default=3, help="runs without --quick (default 3)")
    options, flags = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory(prefix="smt-ray-chain-") as storage:
        runs = list(_runs(Path(storage), 1 if options.quick else options.seeds, flags))
    figures = {**runs[0], "peak_pss_gib": max(run["peak_pss_gib"] for run in runs)}
    for name in REPEATED if len(runs) > 1 else ():
        values = [run[name] for run in runs]
        figures[f"{name}_mean"] = statistics.fmean(values)
        figures[f"{name}_min"], figures[f"{name}_max"] = min(values), max(values)
    print(json.dumps(figures))
    return 0


def _runs(storage: Path, seeds: int, flags: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run the job once a seed; the token shards are made once."""
    for seed in range(seeds):
        name = f"seed-{seed}"
        command = [sys.executable, "jobs/pretrain_lm.py", "tiny", "--name", name]
        peak = run_and_measure([*command, "--storage", str(storage), "--seed", str(seed), *flags])
        summary = json.loads((storage / name / "summary.json").read_text())
        yield {**summary, "peak_pss_gib": peak / 2**30}


def run_and_measure(command: Sequence[str]) -> int:
    """Run a command from the project's root, its output on stderr; return its peak memory in bytes.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    peak = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
        while process.poll() is None:
            began = time.monotonic()
            peak = max(peak, summed_pss(process.pid))
            time.sleep(max(PERIOD_S, (time.monotonic() - began) / SHARE))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def summed_pss(pid: int) -> int:
    """Return the proportional set size, in bytes, of a process and all below it: Ray's as well."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
