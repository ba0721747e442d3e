"""What each job makes of a preset: a run on text, on a synthetic task, or on images.

On the smallest preset, tasks and images have settings of their own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from smt_ray.config import DataConfig, RunConfig
from smt_ray.config.build import merge
from smt_ray.config.presets import fields_of, preset
from smt_ray.data import sources
from smt_ray.data.images import Images

JOBS = {"text": "pretrain_lm", "task": "solve_task", "pixels": "pretrain_pixels"}
"""The job for each kind of source."""


def on_text(name: str, source: str = "", sequence_length: int | None = None) -> RunConfig:
    """Return a preset's run on text; source and L are the preset's unless they are given.

    Raises:
        ValueError: if the source is no text.
    """
    own = preset(name)
    source = source or own.data.source
    _require_kind(source, "text")
    subset = own.data.subset if source == own.data.source else ""
    length = sequence_length or own.data.sequence_length
    data = replace(own.data, source=source, subset=subset, sequence_length=length)
    return _on(name, own.name, data)


def on_task(name: str, source: str = "task:retrieval", sequence_length: int = 32) -> RunConfig:
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
    if name == "tiny":
        changes += [fields_of("tiny-task"), fields_of(f"tiny-{task}")]
    return _on(name, f"{task}-{sequence_length}-{name}", data, *changes)


def on_pixels(
    name: str, source: str = "pixels:digits", sequence_length: int | None = None
) -> RunConfig:
    """Return a preset's run on images; L is their number of pixels unless it is given.

    Raises:
        ValueError: if the source has no images.
    """
    _require_kind(source, "pixels")
    given = DataConfig(source=source, validation_fraction=0.1)
    images = sources.images_in(given)
    data = replace(given, sequence_length=sequence_length or images.pixels)
    changes = [fields_of("tiny-pixels"), _tiny_pixels(data, images)] if name == "tiny" else []
    called = source.removeprefix("pixels:").rsplit("/", 1)[-1].partition(".")[0]
    return _on(name, f"{called}-{name}", data, *changes)


def _tiny_pixels(data: DataConfig, images: Images) -> dict[str, Any]:
    """Return what `tiny` changes for images of one size.

    A horizon reaches past the pixel below, and DMT is unrolled by a row or more. A batch has about
    256 pixels (two images at least), twice as many in DMT; BPTT has 1,024 (four images at least).
    Labels are made for as many images as have 2^17 pixels, unless these are very small or large.
    """
    pixels, width = data.sequence_length, images.width
    rows = {"global_batch": min(16, max(2, 256 // pixels // 2 * 2))}  # an even share of two workers
    own = {"global_batch": min(16, 2 * rows["global_batch"])}
    unrolled = {"global_batch": min(16, max(4, 1024 // pixels))}
    labelled = min(2048, max(512, 2**17 // pixels))
    return {
        "loss": {"horizon": width + max(2, width // 7), "timesteps": max(8, pixels // 48)},
        "teacher": rows,
        "labels": {"fraction": min(1.0, labelled / images.count)},
        "transition": rows,
        "dmt": own | {"depth": max(16, width)},
        "finetune": unrolled,
        "bptt": unrolled,
    }


def on_source(name: str, source: str = "", **given: Any) -> RunConfig:
    """Return a preset's run on any source, by its kind.

    Raises:
        ValueError: if there is no such source of its kind.
    """
    make: dict[str, Callable[..., RunConfig]]
    make = {"text": on_text, "task": on_task, "pixels": on_pixels}
    kind = DataConfig(source=source).kind if source else "text"
    return make[kind](name, source, **given)


def _on(name: str, run: str, data: DataConfig, *changes: dict[str, Any]) -> RunConfig:
    """Return a preset's run on other data; F and S are at most its L."""
    names = ("source", "subset", "sequence_length", "validation_fraction")
    fields = preset(name).to_dict()
    for change in (*changes, {"preset": name, "name": run}):
        fields = merge(fields, change)
    fields = merge(fields, {"data": {field: getattr(data, field) for field in names}})
    for bounded in ("horizon", "timesteps"):
        fields["loss"][bounded] = min(fields["loss"][bounded], data.sequence_length)
    return RunConfig.from_dict(fields)


def _require_kind(source: str, kind: str) -> None:
    found = DataConfig(source=source).kind
    if found != kind:
        raise ValueError(f"data.source={source!r}: is for jobs/{JOBS[found]}.py")
