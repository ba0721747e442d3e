"""Hugging Face data sets as a source: hub names, saved data sets, directories of data files."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.content import versions
from smt_ray.data.files import listed
from smt_ray.data.formats import Document, no_text
from smt_ray.data.pieces import Piece, Weighted, draw
from smt_ray.data.storage import Location

MEND = "give the hub name or the directory of a data set"


def hub_pieces(config: DataConfig) -> dict[str, list[Weighted]]:
    """Return each split's pieces, one a shard of the stream.

    Validation is the data set's own split of that name, otherwise documents of `train`, by a hash.

    Raises:
        ValueError: if the data set is not there or cannot be read.
    """
    splits = _open(config)
    names = {"train": "train", "validation": "validation" if "validation" in splits else "train"}
    return {
        split: [(Piece(name, n, n + 1), pieces.UNIT_BYTES) for n in range(splits[name].num_shards)]
        for split, name in names.items()
    }


def read_hub(parts: tuple[Piece, ...], config: DataConfig, validation: bool) -> Iterator[Document]:
    """Yield the documents of the pieces that are on the asked side of the split.

    Raises:
        ValueError: if the column of text is missing.
    """
    splits = _open(config)
    for piece in parts:
        data = splits[piece.path]
        for shard in range(piece.start, piece.stop):
            part = data.shard(num_shards=data.num_shards, index=shard)
            for number, row in enumerate(_rows(part, config)):
                text = row.get(config.text_field)
                if config.text_field not in row or not isinstance(text, str | bytes | None):
                    raise no_text(f"{config.source}, row {number:,}", config.text_field, row)
                held = draw(f"{shard}/{number}") < config.validation_fraction
                if text and ("validation" in splits or held == validation):
                    yield text


def _rows(part: Any, config: DataConfig) -> Iterator[Any]:
    with _explained(config, "mend the file or leave it out"):
        yield from part


def hub_versions(config: DataConfig, paths: Iterable[str]) -> dict[str, str]:
    """Return what tells the versions of the data set apart, for each of its splits.

    It is the revision of a data set on the hub, or the files of a directory.
    """
    location = Path(_name(config))
    if not location.exists():
        return dict.fromkeys(paths, str(_builder(config).hash))
    found = listed(Location.of(location), "")
    names = [os.path.relpath(path, location) for path in found]
    files = zip(names, versions([Location.of(path) for path in found]), strict=True)
    return dict.fromkeys(paths, hashlib.sha256(repr(list(files)).encode()).hexdigest())


def _name(config: DataConfig) -> str:
    return config.source.removeprefix("hf:")


def _open(config: DataConfig) -> dict[str, Any]:
    """Open the data set as streams by split, each of one or more shards."""
    import datasets

    name = _name(config)
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))
    if saved and config.subset:
        raise ValueError(f"data.subset={config.subset!r}: {name} is saved, so it has one subset")
    if config.revision and Path(name).exists():
        raise ValueError(f"data.revision={config.revision!r}: {name} is a directory; leave it out")
    builder = None if saved else _builder(config)
    with _explained(config):
        found = builder.as_streaming_dataset() if builder else datasets.load_from_disk(name)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise ValueError(
            f"it has no split `train`, only {', '.join(map(str, splits))}; "
            "give its files by path, or another data set"
        )
    for split, data in splits.items():
        if isinstance(data, datasets.Dataset):
            shards = max(1, min(len(data), data.data.nbytes // pieces.UNIT_BYTES))
            splits[split] = data.to_iterable_dataset(num_shards=shards)
    return splits


def _builder(config: DataConfig) -> Any:
    import datasets

    with _explained(config):
        return datasets.load_dataset_builder(
            _name(config), config.subset or None, revision=config.revision or None
        )


@contextmanager
def _explained(config: DataConfig, mend: str = MEND) -> Iterator[None]:
    """Turn what the `datasets` library raises into a `ValueError` that says what to give."""
    import yaml
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    raised = (
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError,
        pa.ArrowException, yaml.YAMLError, DatasetsError, HTTPError,
    )  # fmt: skip
    try:
        yield
    except raised as error:
        said = " ".join(str(error).split())
        if "Config name is missing" in said:
            said = f"it has several subsets ({said.partition('[')[2].partition(']')[0]})"
            mend = "give one as data.subset"
        elif "BuilderConfig" in said and "not found" in said:
            there = said.partition("[")[2].partition("]")[0]
            rule = f"{config.source} has only {there}; give one of them"
            raise ValueError(f"data.subset={config.subset!r}: {rule}") from error
        elif "scripts are no longer supported" in said:
            mend = "give its data files, or a revision in which they are Parquet (data.revision)"
        raise ValueError(f"{said}; {mend}") from error
