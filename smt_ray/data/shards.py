"""The format of token and label shards: Parquet files with rows of raw little-endian numbers.

Token shards hold windows of L + 1 tokens, or L tokens and their L targets, in the narrowest
integers that the vocabulary allows; label shards add the memories of all L timesteps. Legend: N
rows, L sequence, K memory tokens, D width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from smt_ray.data.storage import Location

ROW_GROUP_BYTES = 4 << 20
WRITTEN: dict[str, Any] = {"write_page_checksum": True, "use_dictionary": False}
"""How shards are written: each page with a checksum, which all readers verify."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
"""Number formats of memories. With `int8` each memory token has a float16 `scale` of its own."""

Integers = NDArray[np.integer[Any]]


def token_type(vocabulary: int) -> np.dtype[Any]:
    """Return the narrowest type of tokens 0..V-1."""
    return np.min_scalar_type(vocabulary - 1)


def target_type(vocabulary: int) -> np.dtype[Any]:
    """Return the narrowest type of targets 0..V-1 and -100, which stands for none."""
    return np.result_type(np.min_scalar_type(-vocabulary), np.int8)


def token_schema(
    length: int, vocabulary: int, *, targets: bool = False, covers: bool = True
) -> pa.Schema:
    """Return the columns of a token shard.

    Args:
        length: L, inputs in a sequence.
        vocabulary: V.
        targets: whether a row has targets of its own, L beside L tokens; otherwise they are the
            next tokens, and a row holds L + 1.
        covers: whether a row says how many source bytes (or pixels) its targets are.
    """
    sizes = {"tokens": (length if targets else length + 1) * token_type(vocabulary).itemsize}
    if targets:
        sizes["targets"] = length * target_type(vocabulary).itemsize
    fields = [pa.field("sequence_id", pa.int64(), nullable=False)]
    fields += [pa.field(name, pa.binary(size), nullable=False) for name, size in sizes.items()]
    if covers:
        fields.append(pa.field("bytes", pa.int32(), nullable=False))
    return pa.schema(fields)


def label_schema(
    length: int,
    vocabulary: int,
    memory_tokens: int,
    width: int,
    dtype: str,
    *,
    targets: bool = False,
) -> pa.Schema:
    """Return the columns of a label shard: those of its tokens, and memories of L, K, D."""
    size = length * memory_tokens
    schema = token_schema(length, vocabulary, targets=targets, covers=False)
    memory = pa.binary(size * width * DTYPES[dtype].itemsize)
    schema = schema.append(pa.field("memory", memory, nullable=False))
    if dtype == "int8":
        schema = schema.append(pa.field("scale", pa.binary(2 * size), nullable=False))
    return schema


def row_bytes(schema: pa.Schema) -> int:
    """Return the bytes of one row."""
    return sum(kind.byte_width for kind in schema.types)


def row_group_rows(row_bytes: int) -> int:
    """Return the rows of one row group: about 4 MiB, at least 1 and at most 1024 rows."""
    return max(1, min(1024, ROW_GROUP_BYTES // row_bytes))


def to_column(rows: Integers) -> pa.FixedSizeBinaryArray:
    """Return integers (N, length) as a column of raw numbers that shares their storage."""
    rows = np.ascontiguousarray(rows)
    size = rows.shape[1] * rows.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size), len(rows), [None, pa.py_buffer(rows)]
    )


def from_column(column: pa.ChunkedArray | pa.Array, dtype: np.dtype[Any]) -> Integers:
    """Return a column of raw numbers as integers (N, length) of `dtype`, read-only."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = whole.type.byte_width
    flat = np.frombuffer(whole.buffers()[1], np.uint8)
    flat = flat[whole.offset * width : (whole.offset + len(whole)) * width]
    return flat.view(dtype).reshape(len(whole), -1)


def to_memory(memory: Float[Tensor, "N L K D"], dtype: str) -> dict[str, NDArray[np.uint8]]:
    """Return memories in a number format as columns of raw bytes: `memory`, perhaps `scale`."""
    if dtype == "int8":
        scale = memory.float().abs().amax(-1).clamp(min=1e-4).div(127).half()
        numbers = (memory.float() / scale.float()[..., None]).round().clamp(-127, 127)
        columns = {"memory": numbers.to(torch.int8), "scale": scale}
    else:
        columns = {"memory": memory.to(DTYPES[dtype])}
    flat = {name: value.detach().flatten(1).cpu() for name, value in columns.items()}
    return {name: value.contiguous().view(torch.uint8).numpy() for name, value in flat.items()}


def from_memory(
    columns: dict[str, NDArray[np.uint8]], memory_tokens: int, width: int, dtype: str
) -> Float[Tensor, "N L K D"]:
    """Return stored memories as a tensor: on the bytes themselves, or fp32 of `int8`.

    Args:
        columns: the raw bytes of `memory`, and of `scale` where there is one.
        memory_tokens: K.
        width: D.
        dtype: as in the manifest.
    """
    numbers = torch.from_numpy(columns["memory"]).view(DTYPES[dtype])
    memory = numbers.unflatten(1, (-1, memory_tokens, width))
    if dtype != "int8":
        return memory
    scale = torch.from_numpy(columns["scale"]).view(torch.float16)
    return memory.float() * scale.float().unflatten(1, (-1, memory_tokens, 1))


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `rows` each, the last one with what is left."""
    held: list[pa.Table] = []
    for table in tables:
        whole = pa.concat_tables([*held, table])
        stop = len(whole) // rows * rows
        for start in range(0, stop, rows):
            yield whole[start : start + rows]
        held = [whole[stop:]] if stop < len(whole) else []
    yield from held


def open_parquet(handle: BinaryIO) -> pq.ParquetFile:
    """Open a shard whose pages are verified as they are read."""
    return pq.ParquetFile(handle, page_checksum_verification=True)


@contextmanager
def whole(file: Location) -> Iterator[None]:
    """Name the shard whose content is not what was written.

    Raises:
        ValueError: in one line, with the mend.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{file}: the shard is missing; {mend(file)}") from error
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: the shard is damaged ({reason}); {mend(file)}") from error


def is_damage(error: object) -> bool:
    """Return whether pyarrow found content that was not written so, not a store out of reach."""
    signs = ("CRC checksum", "deserialize thrift", "orrupt", "nexpected end of stream")
    return any(sign in str(error) for sign in signs)


def mend(file: Location) -> str:
    """Say what to do about a file in the directory of a split: the whole artifact is made anew."""
    return f"delete {file.parent.parent} and give the same command again"
