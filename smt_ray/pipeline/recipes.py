"""What each job makes of a preset: a run on text, on a synthetic task, or on images.

On the smallest preset, tasks and images have settings of their own.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from smt_ray.config import DataConfig, RunConfig
from smt_ray.config.build import merge
from smt_ray.config.presets import PRESETS
from smt_ray.data import sources

JOBS = {"text": "pretrain_lm", "task": "solve_task", "pixels": "pretrain_pixels"}
"""The job for each kind of source."""

TINY_TASK: dict[str, Any] = {
    "model": {
        "width": 32,  # a step takes a little over half the time of 64: docs/log.md
        "memory_tokens": 2,  # with 4 the teacher finds what to remember much later: docs/log.md
        "encoder_depth": 2,
        "short_convolution": 3,
        "register_depth": 2,
        "cell_depth": 1,
    },
    "loss": {
        "dynamics": 1.0,
        "dense_dynamics": True,
        "whiten_dynamics": "slots",
        "dynamics_below": 0.5,  # chance is 0.69 (parity) to 2.77
    },
    "teacher": {
        "steps": 4000,
        "global_batch": 8,
        "learning_rate": 2e-3,
        "validate_every": 500,
        "validation_batches": 32,
    },
    "labels": {"fraction": 0.125},
    "transition": {"train": {"steps": 1000, "global_batch": 16, "learning_rate": 2e-3}},
    "dmt": {
        "dynamics": 10.0,  # where only the teacher tells what will be asked for much later
        "train": {"steps": 3000, "global_batch": 16, "learning_rate": 2e-3},
    },
    "finetune": {"train": {"steps": 1000, "global_batch": 16, "learning_rate": 2e-3}},
    "bptt": {"train": {"steps": 6000, "global_batch": 16, "learning_rate": 3e-3}},
}
"""What `tiny` changes for a task."""

FREE_DMT = {"dynamics": 0.3, "train": {"global_batch": 32, "learning_rate": 8e-3}}
"""Where parts of eight timesteps tell a cell more than the teacher's memories do: docs/log.md."""
STARTED_DMT = {**FREE_DMT, "dynamics": 0.0}
"""Where these memories are but a good start."""

TINY_TASKS: dict[str, dict[str, Any]] = {
    "copy": {
        # "As far after the marker as its symbol is before it" is told by positions, no distance.
        "model": {"absolute_positions": True, "memory_tokens": 4},
        # With four tokens a whole string is not decoded below 0.7 nats: docs/log.md.
        "loss": {"timesteps": 8, "dynamics_below": 2.0},
        "teacher": {"learning_rate": 5e-3},
        "dmt": {"depth": 16, "train": {"learning_rate": 8e-3}},
    },
    "stack": {
        # Most of what is popped is popped soon; and so a step costs less: docs/log.md.
        "loss": {"horizon": 4, "timesteps": 32},
        "teacher": {"learning_rate": 5e-3},
        "dmt": STARTED_DMT,
        "bptt": {"train": {"learning_rate": 8e-3}},
    },
    "modular": {"dmt": FREE_DMT},
    "parity": {"dmt": STARTED_DMT},
    "keysvalues": {
        # A slot for every pair and one to spare, which a closed gate keeps as it is; a decoder that
        # can look a key up among its inputs.
        "model": {
            "absolute_positions": True,
            "memory_tokens": 9,
            "decoder_depth": 2,
            "cell_depth": 2,
            "write_gate": True,
        },
        "loss": {"dynamics_below": 1.0},
        # Eight pairs alone are not learned: docs/log.md.
        "data": {"task": {"fewest_pairs": 1}},
        "teacher": {"steps": 12_000},
        "labels": {"fraction": 0.25},
        "dmt": {  # a value is asked for up to 30 timesteps after it was told
            "depth": 32,
            "dynamics": 1.0,
            "fade": 0.5,
            "train": {"steps": 6000, "global_batch": 32, "learning_rate": 4e-3},
        },
    },
}
"""What `tiny` changes for one task more than for the others."""

TINY_PIXELS: dict[str, Any] = {
    "model": {"absolute_positions": True, "short_convolution": 3},  # where in a row a pixel lies
    "loss": {"dynamics": 1.0},
    "teacher": {"steps": 6000, "learning_rate": 6e-3, "validate_every": 750},
    "transition": {"train": {"steps": 750, "learning_rate": 2e-3}},
    "dmt": {"train": {"steps": 3000, "learning_rate": 2e-3, "validate_every": 750}},
    "finetune": {"train": {"steps": 1000, "learning_rate": 2e-3, "validate_every": 250}},
    "bptt": {"train": {"steps": 6000, "learning_rate": 4e-3, "validate_every": 750}},
}
"""What `tiny` changes for images of any size."""


def _tiny_pixels(data: DataConfig) -> dict[str, Any]:
    """Return what `tiny` changes for images of one size.

    A horizon reaches past the pixel below, and DMT is unrolled by a row or more. A batch has about
    256 pixels (two images at least), twice as many in DMT, which brought more than 1,024 in the
    same time, except to BPTT, which has these (four images at least; docs/log.md); labels are made
    for as many images as have 2^17, unless these are very small or large.
    """
    _, width = sources.image_shape(data)
    pixels = data.sequence_length
    rows = {"global_batch": min(16, max(2, 256 // pixels // 2 * 2))}  # an even share of two workers
    own = {"global_batch": min(16, 2 * rows["global_batch"])}
    unrolled = {"global_batch": min(16, max(4, 1024 // pixels))}
    images = min(2048, max(512, 2**17 // pixels))
    return {
        "loss": {"horizon": width + max(2, width // 7), "timesteps": max(8, pixels // 48)},
        "teacher": rows,
        "labels": {"fraction": min(1.0, images * pixels / sources.size(data))},
        "transition": {"train": rows},
        "dmt": {"train": own, "depth": max(16, width)},
        "finetune": {"train": unrolled},
        "bptt": {"train": unrolled},
    }


def on_text(preset: str, source: str = "stdlib", sequence_length: int | None = None) -> RunConfig:
    """Return a preset's run on text; L is the preset's unless it is given.

    Raises:
        ValueError: if the source is no text.
    """
    _require_kind(source, "text")
    own = PRESETS[preset]()
    length = sequence_length or own.data.sequence_length
    return _on(preset, own.name, replace(own.data, source=source, sequence_length=length))


def on_task(preset: str, source: str = "task:retrieval", sequence_length: int = 32) -> RunConfig:
    """Return a preset's run on a synthetic task; F = L, for its answers may come late.

    On `tiny`, stack has a short one.

    Raises:
        ValueError: if the source is no task, or there is none of that name.
    """
    _require_kind(source, "task")
    data = DataConfig(source=source, sequence_length=sequence_length)
    sources.load_tokenizer_of(data)
    task = source.removeprefix("task:")
    changes: list[dict[str, Any]] = [{"loss": {"horizon": sequence_length}}]
    if preset == "tiny":
        changes += [TINY_TASK, TINY_TASKS.get(task, {})]
    return _on(preset, f"{task}-{sequence_length}-{preset}", data, *changes)


def on_pixels(
    preset: str, source: str = "pixels:digits", sequence_length: int | None = None
) -> RunConfig:
    """Return a preset's run on images; L is their number of pixels unless it is given.

    Raises:
        ValueError: if the source has no images.
    """
    _require_kind(source, "pixels")
    given = DataConfig(source=source, validation_fraction=0.1)
    pixels = math.prod(sources.image_shape(given))
    data = replace(given, sequence_length=sequence_length or pixels)
    changes = [TINY_PIXELS, _tiny_pixels(data)] if preset == "tiny" else []
    name = source.removeprefix("pixels:").rsplit("/", 1)[-1].partition(".")[0]
    return _on(preset, f"{name}-{preset}", data, *changes)


def on_source(preset: str, source: str = "stdlib", **given: Any) -> RunConfig:
    """Return a preset's run on any source, by its kind.

    Raises:
        ValueError: if there is no such source of its kind.
    """
    make: dict[str, Callable[..., RunConfig]]
    make = {"text": on_text, "task": on_task, "pixels": on_pixels}
    return make[DataConfig(source=source).kind](preset, source, **given)


def _on(preset: str, name: str, data: DataConfig, *changes: dict[str, Any]) -> RunConfig:
    """Return a preset's run on other data; F and S are at most its L."""
    names = ("source", "sequence_length", "validation_fraction")
    taken = {field: getattr(data, field) for field in names}
    run = PRESETS[preset]().to_dict()
    for change in (*changes, {"name": name, "data": taken}):
        run = merge(run, change)
    for bounded in ("horizon", "timesteps"):
        run["loss"][bounded] = min(run["loss"][bounded], data.sequence_length)
    return RunConfig.from_dict(run)


def _require_kind(source: str, kind: str) -> None:
    found = DataConfig(source=source).kind
    if found != kind:
        raise ValueError(f"data.source={source!r}: is for jobs/{JOBS[found]}.py")
