"""Named starting points of a run, from two CPU cores to a cluster, and what each job makes of them.

A preset says how large the networks are and how long they train on text. The makers `on_text`,
`on_task` and `on_pixels` turn one into a run on a source of their kind; on the smallest, tasks and
images have settings of their own.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from smt_ray.config import (
    DataConfig,
    DmtConfig,
    EvaluationConfig,
    LabelConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    RuntimeConfig,
    TrainConfig,
    TransitionConfig,
)
from smt_ray.data import sources


def tiny() -> RunConfig:
    """Two CPU cores, a few minutes."""
    return RunConfig(
        preset="tiny",
        name="tiny",
        model=ModelConfig(
            width=64,
            memory_tokens=4,
            heads=2,
            encoder_depth=3,
            trunk_reach=0,  # with it the RNN is further from its better teacher: docs/log.md
            register_depth=1,
            decoder_depth=1,
            cell_depth=2,
        ),
        teacher=TrainConfig(
            steps=1800,
            global_batch=8,
            learning_rate=4e-3,
            schedule="cosine",
            warmup_fraction=0.05,
            validate_every=900,
            validation_batches=32,
        ),
        labels=LabelConfig(fraction=0.03),
        transition=TransitionConfig(
            train=TrainConfig(
                steps=250,
                global_batch=16,
                learning_rate=2e-3,
                schedule="cosine",
                validate_every=250,
                validation_batches=8,
            )
        ),
        dmt=DmtConfig(
            visits=8.0,
            train=TrainConfig(
                steps=1100,
                global_batch=16,
                learning_rate=1e-3,
                schedule="cosine",
                validate_every=550,
                validation_batches=8,
            ),
        ),
        evaluation=EvaluationConfig(sequences=512),
    )


def small() -> RunConfig:
    """One GPU, about an hour."""
    return RunConfig(
        preset="small",
        name="small",
        data=DataConfig(sequence_length=256),
        model=ModelConfig(
            width=192, memory_tokens=8, heads=6, encoder_depth=6, decoder_depth=2, cell_depth=4
        ),
        loss=LossConfig(timesteps=8, horizon=32),
        teacher=TrainConfig(
            steps=20_000,
            global_batch=128,
            learning_rate=1e-3,
            schedule="cosine",
            precision="bfloat16",
            validate_every=1000,
        ),
        transition=TransitionConfig(
            train=TrainConfig(steps=2_000, global_batch=64, precision="bfloat16", schedule="cosine")
        ),
        dmt=DmtConfig(
            train=TrainConfig(
                steps=4_000,
                global_batch=64,
                learning_rate=1e-4,
                schedule="cosine",
                precision="bfloat16",
            )
        ),
        runtime=RuntimeConfig(workers=1, gpu=True, gang_ranks=1, micro_batch=64),
    )


def paper() -> RunConfig:
    """The authors' settings (arXiv:2606.06479) with the causal encoder; one large GPU or more."""
    return RunConfig(
        preset="paper",
        name="paper",
        data=DataConfig(sequence_length=320),
        model=ModelConfig(
            width=256, memory_tokens=16, heads=8, encoder_depth=8, decoder_depth=4, cell_depth=8
        ),
        loss=LossConfig(timesteps=8, horizon=64),
        teacher=TrainConfig(
            steps=150_000, global_batch=128, precision="bfloat16", validate_every=2500
        ),
        transition=TransitionConfig(
            train=TrainConfig(steps=5_000, global_batch=64, precision="bfloat16", schedule="cosine")
        ),
        dmt=DmtConfig(
            train=TrainConfig(
                steps=18_000,
                global_batch=32,
                learning_rate=3e-5,
                schedule="cosine",
                precision="bfloat16",
            )
        ),
        runtime=RuntimeConfig(workers=1, gpu=True, gang_ranks=1, micro_batch=32),
    )


def large() -> RunConfig:
    """About a billion parameters, ZeRO-3 over 8 GPUs."""
    base = paper()
    train = TrainConfig(
        steps=100_000,
        global_batch=512,
        learning_rate=2e-4,
        schedule="cosine",
        precision="bfloat16",
        validate_every=2500,
    )
    return RunConfig(
        preset="large",
        name="large",
        data=DataConfig(sequence_length=1024),
        model=ModelConfig(
            width=1536, memory_tokens=16, heads=12, encoder_depth=20, decoder_depth=6, cell_depth=8
        ),
        loss=base.loss,
        teacher=train,
        transition=base.transition,
        dmt=base.dmt,
        runtime=RuntimeConfig(
            workers=8, gpu=True, zero_stage=3, micro_batch=2, gang_ranks=8, gang_batch=64
        ),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "small": small,
    "paper": paper,
    "large": large,
}

JOBS = {"text": "pretrain_lm", "task": "solve_task", "pixels": "pretrain_pixels"}
"""The job for each kind of source."""

TINY_TASK: dict[str, Any] = {
    "model": {
        "width": 32,  # a step takes a little over half the time of 64: docs/log.md
        "memory_tokens": 2,  # with 4 the teacher finds what to remember much later: docs/log.md
        "encoder_depth": 2,
        "trunk_reach": 3,
        "register_depth": 2,
        "cell_depth": 1,
    },
    "loss": {
        "dynamics": 1.0,
        "dense_dynamics": True,
        "whiten_dynamics": True,
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
        "mode": "sequential",  # on two cores a rollout of so few steps costs little
        # A greater rate undoes what the transition has fitted: docs/log.md.
        "train": {"steps": 3000, "global_batch": 16, "learning_rate": 5e-4},
    },
    "finetune": {"train": {"steps": 1000, "global_batch": 16, "learning_rate": 2e-3}},
    "bptt": {"train": {"steps": 6000, "global_batch": 16, "learning_rate": 1e-3}},
}
"""What `tiny` changes for a task."""

TINY_TASKS: dict[str, dict[str, Any]] = {
    "copy": {
        # "As far after the marker as its symbol is before it" is told by a clock, not by distances.
        "model": {"clock": True, "memory_tokens": 4},
        # A string is not decoded below 0.8 nats in this time: docs/log.md.
        "loss": {"timesteps": 8, "dynamics_below": 2.0},
        "teacher": {"learning_rate": 5e-3},
    }
}
"""What `tiny` changes for one task more than for the others."""

TINY_PIXELS: dict[str, Any] = {
    "teacher": {"steps": 2000, "global_batch": 16, "learning_rate": 2e-3, "validate_every": 250},
    "transition": {"train": {"steps": 250}},
    "dmt": {"train": {"steps": 1000, "learning_rate": 5e-4, "validate_every": 250}},
}
"""What `tiny` changes for images: there are few digits, so that the teacher stops early."""

LABELLED_IMAGES = 2048
"""Images that `tiny` labels, about."""


def on_text(preset: str, source: str = "stdlib", sequence_length: int | None = None) -> RunConfig:
    """Return a preset's run on text.

    Raises:
        ValueError: if the source is no text.
    """
    _require_kind(source, "text")
    return PRESETS[preset]()


def on_task(preset: str, source: str = "task:retrieval", sequence_length: int = 32) -> RunConfig:
    """Return a preset's run on a synthetic task; F = L, for its answers may come late.

    Raises:
        ValueError: if the source is no task, or there is none of that name.
    """
    _require_kind(source, "task")
    data = DataConfig(source=source, sequence_length=sequence_length)
    sources.load_tokenizer_of(data)
    task = source.removeprefix("task:")
    changes = [TINY_TASK, TINY_TASKS.get(task, {})] if preset == "tiny" else []
    return _on(preset, f"{task}-{sequence_length}", data, sequence_length, *changes)


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
    changes = {}
    if preset == "tiny":
        labels = {"fraction": min(1.0, LABELLED_IMAGES * pixels / sources.size(data))}
        changes = TINY_PIXELS | {"labels": labels}
    name = source.removeprefix("pixels:").rsplit("/", 1)[-1].partition(".")[0]
    return _on(preset, name, data, PRESETS[preset]().loss.horizon, changes)


def on_source(preset: str, source: str = "stdlib", **given: Any) -> RunConfig:
    """Return a preset's run on any source, by its kind.

    Raises:
        ValueError: if there is no such source of its kind.
    """
    make: dict[str, Callable[..., RunConfig]]
    make = {"text": on_text, "task": on_task, "pixels": on_pixels}
    return make[DataConfig(source=source).kind](preset, source, **given)


def _on(
    preset: str, name: str, data: DataConfig, horizon: int, *changes: dict[str, Any]
) -> RunConfig:
    """Return a preset's run on other data, under a name that says which."""
    base, length = PRESETS[preset](), data.sequence_length
    for change in changes:
        base = base.update(change)
    loss = {
        "horizon": min(horizon, length),
        "timesteps": min(base.loss.timesteps, length),
    }
    return base.update({"name": f"{name}-{preset}", "data": asdict(data), "loss": loss})


def _require_kind(source: str, kind: str) -> None:
    found = DataConfig(source=source).kind
    if found != kind:
        raise ValueError(f"data.source={source!r}: is for jobs/{JOBS[found]}.py")
