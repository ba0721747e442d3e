"""Small shards of random content, in any layout of files and row groups; weights, gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from smt_ray.config import ModelConfig
from smt_ray.data.manifest import MANIFEST, Shards, open_manifest, schema_of, write_manifest
from smt_ray.data.reader import Stream
from smt_ray.data.shards import WRITTEN, from_column, to_column, to_memory, token_type
from smt_ray.data.storage import Location

Network = TypeVar("Network", bound=nn.Module)
VOCABULARY = 11
MODEL = ModelConfig(width=8, memory_tokens=2, heads=2, encoder_depth=1, register_depth=1)


class Around(Stream):
    """Another stream, whose batches may be changed."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.carry, self.state, self.probe = (  # type: ignore[method-assign]
            stream.carry,
            stream.state,
            stream.probe,
        )


def random_weights(module: Network, seed: int = 0) -> Network:
    """Give every parameter random numbers: fresh residual branches are zero and hide mistakes."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4, generator=random)
    return module


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of each parameter that the loss depends on."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


@contextmanager
def output_sizes(module: nn.Module) -> Iterator[list[int]]:
    """Note how many numbers each call of a module returns."""
    sizes: list[int] = []
    hook = module.register_forward_hook(lambda _module, _inputs, out: sizes.append(out.numel()))
    try:
        yield sizes
    finally:
        hook.remove()


def rows(count: int, length: int, model: ModelConfig | None = None, unit: int = 0) -> pa.Table:
    """Return token rows, or label rows with memories of `model`'s shape; sorted by id."""
    random = np.random.default_rng(unit)
    tokens = random.integers(0, VOCABULARY, (count, length + 1), dtype=np.int32)
    columns: dict[str, Any] = {
        "sequence_id": np.arange(count) + (unit << 32),
        "tokens": to_column(tokens.astype(token_type(VOCABULARY))),
    }
    if model is None:
        columns["bytes"] = np.full(count, length, np.int32)
    else:
        shape = (count, length, model.memory_tokens, model.width)
        memory = torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
        columns["memory"] = to_column(to_memory(memory, "float32")["memory"])
    return pa.table(columns)


def tokens_of(table: pa.Table, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Return the tokens of rows as numbers."""
    return from_column(table["tokens"], token_type(vocabulary)).astype(np.int64)


def write(
    directory: Location,
    table: pa.Table,
    model: ModelConfig | None = None,
    *,
    files: int = 1,
    group: int = 64,
    **fields: Any,
) -> dict[str, Any]:
    """Write `rows` as shards of `group` rows a row group, with a manifest; return the manifest."""
    directory.make_dir()
    length = len(tokens_of(table[:1])[0]) - 1
    shape: dict[str, Any] = {"kind": "tokens"}
    if model is not None:
        shape = {"memory_tokens": model.memory_tokens, "width": model.width, "dtype": "float32"}
        shape["kind"] = "labels"
    own = {"split": directory.name, "sequence_length": length, "vocabulary": VOCABULARY}
    manifest = {**shape, **own, "targets": 0, **fields}
    cuts = np.linspace(0, len(table), files + 1).astype(int)
    shards = {}
    for number in range(files):
        part = table.slice(cuts[number], cuts[number + 1] - cuts[number])
        name = f"{number:03d}.parquet"
        part = part.cast(schema_of(manifest))
        pq.write_table(part, (directory / name).path, row_group_size=group, **WRITTEN)
        first, size = part["sequence_id"][0].as_py(), (directory / name).size()
        shards[name] = {"rows": len(part), "first_id": first, "bytes": size}
    manifest = write_manifest(directory, manifest, shards) | {"row_group_rows": group}
    (directory / MANIFEST).write_json(manifest)
    return manifest


def read_all(directory: Location, kind: Any = "tokens") -> None:
    """Read every page of a directory's shards."""
    shards = Shards(directory, open_manifest(directory, kind))
    for number, name in enumerate(shards.names):
        shards.table(number, 0, shards.manifest["shards"][name]["rows"])
