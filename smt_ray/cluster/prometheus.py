"""What Prometheus scrapes from every node: Ray exports each series here as `ray_<name>`.

All have the tags `run` and `stage`. A series lives in the process that sets it: the gauges in rank
0 of a stage's training, the counters beside the driver.
"""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge

TAGS = ("run", "stage")
GAUGES = {
    "step": ("smt_ray_step", "Optimizer steps done."),
    "loss/total": ("smt_ray_loss", "Training loss, the mean since the last value."),
    "validation/loss": ("smt_ray_validation_loss", "Validation loss."),
    "norm/gradient": ("smt_ray_gradient_norm", "Norm of the gradient before clipping."),
    "rate/tokens_per_s": ("smt_ray_tokens_per_second", "Tokens trained on per second."),
    "time/step_s": ("smt_ray_step_seconds", "Seconds of one step."),
    "time/data_s": ("smt_ray_data_seconds", "Seconds of one step in which rank 0 waits for data."),
    "time/checkpoint_s": ("smt_ray_checkpoint_seconds", "Seconds of the last checkpoint."),
}
"""By its name in metrics.jsonl, each gauge's own name and meaning."""
COUNTERS = {
    "smt_ray_labels": "Memory labels made: (sequence, timestep) pairs.",
    "smt_ray_gang_rebuilds": "Encoder gangs built again after a lost rank or node.",
    "smt_ray_training_failures": "Failures of training workers; each costs a restart.",
}
"""Name and meaning of each counter."""


@cache
def _gauge(name: str, meaning: str) -> Gauge:
    return Gauge(name, description=meaning, tag_keys=TAGS)


@cache
def _counter(name: str) -> Counter:
    return Counter(name, description=COUNTERS[name], tag_keys=TAGS)


def show(values: Mapping[str, float], run: str, stage: str) -> None:
    """Set the gauges of those `values` that have one."""
    for key, value in values.items():
        if key in GAUGES:
            _gauge(*GAUGES[key]).set(value, tags={"run": run, "stage": stage})


def count(name: str, run: str, stage: str, by: float = 1.0) -> None:
    """Add to a counter of `COUNTERS`."""
    if by > 0:
        _counter(name).inc(by, tags={"run": run, "stage": stage})
