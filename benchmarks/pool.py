"""Independent measurements, two at a time, each in a process with one torch thread.

All results of a benchmark lie in one JSON file, by name; a second run makes only those that are
missing. Each holds the machine's `speed`, which its seconds are adjusted for (`timer.py`).
"""

import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.timer import now, timer
from smt_ray.cluster.session import WORKER_ENVIRONMENT

Result = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "docs" / "results"
"""Where the published results lie."""
CONCURRENT = 2


def measure(jobs: Mapping[str, Callable[[], Result]], file: Path) -> dict[str, Result]:
    """Return the result of every named job, from `file` or made now.

    Jobs are started in order, and travel to their process by pickle.
    """
    found = read(file)
    missing = {name: job for name, job in jobs.items() if name not in found}
    os.environ.update(WORKER_ENVIRONMENT)  # what training workers have, for the processes below
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CONCURRENT, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(_with_speed, job): name for name, job in missing.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            found[futures[future]] = future.result()
            _write(file, found)
            print(f"{done} of {len(missing)}: {futures[future]}", file=sys.stderr, flush=True)
    return {name: found[name] for name in jobs}


def read(file: Path) -> dict[str, Result]:
    """Return the results in a file; none if it is not there."""
    return json.loads(file.read_text()) if file.exists() else {}


def best_rate(cells: Sequence[Result]) -> float:
    """Return the learning rate with the fewest bits on seed 0, to three digits.

    Of equals it is that of the most seeds, and of these the greatest.

    Raises:
        ValueError: if there are none of seed 0.
    """
    seeds = Counter(cell["rate"] for cell in cells)
    first = [cell for cell in cells if not cell["seed"]]
    return -min((round(c["bits"], 3), -seeds[c["rate"]], -c["rate"]) for c in first)[2]


def _write(file: Path, found: Mapping[str, Result]) -> None:
    """Write one line a result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    part = file.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    part.replace(file)


def _with_speed(job: Callable[[], Result]) -> Result:
    """Run a job; add the mean speed of the machine at it, in steps of the timer's layer."""
    timer.cache_clear()
    result = job()
    now()
    return {**result, "speed": timer().speed}
