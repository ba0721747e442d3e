"""One trial on the cluster: the pipeline in a task, watched by the function that Ray Tune runs.

Tune puts its function into a placement group that captures all that is started from there, so the
pipeline, whose stages bring their own groups, runs in a task outside of it. Tune's function reports
`line`, what the pipeline says; `step` and `bits`, each validation of the teacher, whoever trains
it; and `figures` or `error`, how the trial ended, once its record is written.
"""

import logging
import math
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from logging.handlers import QueueHandler
from typing import Any

import ray
from ray import tune

from smt_ray.cluster.interruption import Stopped
from smt_ray.config import RunConfig, masked
from smt_ray.data.storage import Location
from smt_ray.pipeline import run as pipeline
from smt_ray.pipeline.building import logger as building_logger
from smt_ray.pipeline.locks import logger as locks_logger
from smt_ray.studies.trials import Records, Trial, on_one_gpu
from smt_ray.train.metrics import read_metrics

POLL_S = 2.0
STEP, BITS = "step", "bits"
"""What is reported of a validation; bits a token: the teacher's cross-entropy of the next target,
`validation/dense` of metrics.jsonl, or else that of its decoder's targets, `validation/dec`."""


def follow(settings: dict[str, Any]) -> None:
    """Run the trial, report what is said and measured, and write how it ended."""
    trial: Trial = settings["trial"]
    records: Records = settings["records"]
    items: Any = _run.options(scheduling_strategy="DEFAULT").remote(
        trial.config, settings["overwrite"]
    )
    seen = -1
    while True:
        ready, _ = ray.wait([items], timeout=POLL_S)
        teacher = trial.locations().get("teacher")
        for step, bits in validations(teacher) if teacher else ():
            if step > seen:
                seen = step
                tune.report({STEP: step, BITS: bits})
        if not ready:
            continue
        try:
            item: str | dict[str, Any] | None = ray.get(next(items))
        except ray.exceptions.RayError as error:
            said = _first_line(error)
            records.write(replace(trial.named(), status="failed", error=said))
            tune.report({"error": said})
            return
        if item is None:  # its record stays that of a trial that runs: it is gone on with
            return
        if isinstance(item, dict):
            records.write(replace(trial.named(), status="finished", figures=item))
            tune.report({"figures": item})
            return
        tune.report({"line": item})


def validations(teacher: Location) -> list[tuple[int, float]]:
    """Return (step, bits) of the validations that a teacher has logged so far."""
    found = []
    for row in read_metrics(teacher):
        nats = row.get("validation/dense", row.get("validation/dec"))
        if nats is not None:
            found.append((row["step"], nats / math.log(2)))
    return found


@ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")
def _run(config: RunConfig, overwrite: bool) -> Iterator[str | dict[str, Any] | None]:
    """Run the pipeline in a thread; yield each line that it logs, and at last its summary.

    None comes last of a pipeline that was asked to stop.
    """
    lines: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
    for source in (building_logger, locks_logger):
        source.addHandler(QueueHandler(lines))
        source.setLevel(logging.INFO)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pipeline.run, on_one_gpu(config), overwrite=overwrite)
        running.add_done_callback(lambda _: lines.put(None))
        while line := lines.get():
            yield masked(" ".join(line.getMessage().split()))
    try:
        yield running.result()
    except Stopped:
        yield None


def _first_line(error: ray.exceptions.RayError) -> str:
    """Return what went wrong in one line: the pipeline's own words where it raised them."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    said = masked(cause).strip().splitlines()
    name = type(cause).__name__
    first = said[0] if said else name
    return first if isinstance(cause, ValueError) else f"{name}: {first}" if said else name
