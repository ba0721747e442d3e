"""Independent measurements, two at a time, each in a process with one torch thread.

Every measurement leaves one JSON file; a second run makes only those that are missing. Each result
holds the machine's `speed`, which its seconds are adjusted for (`timer.py`).
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.timer import now, timer
from smt_ray.cluster.session import WORKER_ENVIRONMENT

Result = dict[str, Any]
CONCURRENT = 2


def measure(jobs: Mapping[str, Callable[[], Result]], directory: Path) -> dict[str, Result]:
    """Return the result of every named job, from its file in `directory` or made now.

    Jobs are started in order, and travel to their process by pickle.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: directory / f"{name}.json" for name in jobs}
    missing = {name: job for name, job in jobs.items() if not files[name].exists()}
    os.environ.update(WORKER_ENVIRONMENT)  # what training workers have, for the processes below
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CONCURRENT, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(_with_speed, job): name for name, job in missing.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            name = futures[future]
            files[name].write_text(json.dumps(future.result(), indent=1) + "\n")
            print(f"{done} of {len(missing)}: {name}", file=sys.stderr, flush=True)
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def _with_speed(job: Callable[[], Result]) -> Result:
    """Run a job; add the mean speed of the machine at it, in steps of the timer's layer."""
    timer.cache_clear()
    result = job()
    now()
    return {**result, "speed": timer().speed}
