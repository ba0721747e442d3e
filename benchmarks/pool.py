"""Independent measurements, two at a time, each in a process with one torch thread.

Every measurement leaves one JSON file; a second run makes only those that are missing. In the same
seconds a faster machine trains further, so each result holds the machine's `speed`, and what was
measured at another speed is not to be compared at equal time.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from smt_ray.distributed.session import WORKER_ENVIRONMENT

Result = dict[str, Any]
CONCURRENT = 2
EQUAL = 1.25
"""Speeds of one machine, as it is shared, differ by less than this factor."""


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
    results = {name: json.loads(file.read_text()) for name, file in files.items()}
    if (factor := unequal(results.values())) > EQUAL:
        print(
            f"{directory}: was measured at speeds that differ by a factor of {factor:.1f}; delete "
            "the results of the other machine to compare at equal time",
            file=sys.stderr,
        )
    return results


def unequal(results: Iterable[Result]) -> float:
    """Return the greatest speed of the machine over the least among the results; 1 if none."""
    speeds = [result["speed"] for result in results]
    return max(speeds) / min(speeds) if speeds else 1.0


def speed(steps: int = 100) -> float:
    """Return the training steps of a small fixed Transformer layer a CPU second."""
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    memory = torch.randn(64, 8, 64)

    def train(steps: int) -> float:
        began = time.process_time()
        for _ in range(steps):
            layer(memory).square().mean().backward()
        return time.process_time() - began

    train(10)  # warms up
    return steps / train(steps)


def _with_speed(job: Callable[[], Result]) -> Result:
    """Run a job; add the mean speed of the machine before and after it."""
    before, result = speed(), job()
    return {**result, "speed": (before + speed()) / 2}
