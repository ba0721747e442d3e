"""Hugging Face data sets as a source: hub names, saved data sets, directories of data files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smt_ray.config import DataConfig
from smt_ray.data import pieces
from smt_ray.data.formats import Document, no_text
from smt_ray.data.pieces import Piece, Weighted, draw


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
            for number, row in enumerate(part):
                text = row.get(config.text_field)
                if config.text_field not in row or not isinstance(text, str | bytes | None):
                    raise no_text(config.source, config.text_field, row)
                held = draw(config.seed, f"{shard}/{number}") < config.validation_fraction
                if text and ("validation" in splits or held == validation):
                    yield text


def _open(config: DataConfig) -> dict[str, Any]:
    """Open the data set as streams by split, each of one or more shards."""
    import datasets

    name = config.source.removeprefix("hf:")
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, streaming=True)
    except OSError as error:
        raise ValueError(f"{error}; give the hub name or the directory of a data set") from error
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise ValueError(f"it has no split `train`, only {', '.join(splits)}")
    for split, data in splits.items():
        if isinstance(data, datasets.Dataset):
            shards = max(1, min(len(data), data.data.nbytes // pieces.UNIT_BYTES))
            splits[split] = data.to_iterable_dataset(num_shards=shards)
    return splits
