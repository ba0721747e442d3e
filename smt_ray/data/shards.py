"""The format of token and label shards: Parquet files and a manifest in one directory.

Token shards hold windows of L + 1 tokens, or L tokens and their L targets; label shards add the
memories of all L timesteps as raw little-endian bytes. Legend: N rows, L sequence, K memory tokens,
D width.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from smt_ray.data.storage import Location

MANIFEST = "manifest.json"
ROW_GROUP_BYTES = 4 << 20
CHECKSUMS: dict[str, Any] = {"write_page_checksum": True}
"""How shards are written: each page with a checksum, which all readers verify."""
VERIFIED = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
"""How pyarrow's data sets read them."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Manifest = dict[str, Any]


def token_schema(length: int, *, targets: bool = False, covers: bool = True) -> pa.Schema:
    """Return the columns of a token shard.

    Args:
        length: L, inputs in a sequence.
        targets: whether a row has targets of its own, L beside L tokens; otherwise they are the
            next tokens, and a row holds L + 1.
        covers: whether a row says how many source bytes (or pixels) its targets are.
    """
    names = ("tokens", "targets") if targets else ("tokens",)
    lists = pa.list_(pa.int32(), length if targets else length + 1)
    fields = [pa.field("sequence_id", pa.int64(), nullable=False)]
    fields += [pa.field(name, lists, nullable=False) for name in names]
    if covers:
        fields.append(pa.field("bytes", pa.int32(), nullable=False))
    return pa.schema(fields)


def label_schema(
    length: int, memory_tokens: int, width: int, dtype: str, *, targets: bool = False
) -> pa.Schema:
    """Return the columns of a label shard: those of its tokens, and memories of L, K, D."""
    size = length * memory_tokens * width * DTYPES[dtype].itemsize
    tokens = token_schema(length, targets=targets, covers=False)
    return tokens.append(pa.field("memory", pa.binary(size), nullable=False))


def row_group_rows(row_bytes: int) -> int:
    """Return the rows of one row group: about 4 MiB, at least 1 and at most 1024 rows."""
    return max(1, min(1024, ROW_GROUP_BYTES // row_bytes))


def open_shards(
    directory: Location, kind: Literal["tokens", "labels"], **expected: Any
) -> Manifest:
    """Read a shard directory's manifest and check it and every shard's footer.

    Args:
        directory: where the manifest and the shards are.
        kind: what the caller needs.
        **expected: manifest fields that the caller depends on, such as `sequence_length=128`; for
            labels also `encoder`, the fingerprint of the teacher that must have made them.

    Returns:
        The manifest.

    Raises:
        ValueError: in one line that names the file, if the manifest is missing or has another value
            for an expected field, or if a shard is missing, truncated, or does not fit it.
    """
    location = directory / MANIFEST
    try:
        manifest: Manifest = location.read_json()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{location}: no such file; run the stage that makes {kind}") from error
    except ValueError as error:
        raise ValueError(f"{location}: not JSON; {_mend(location)}") from error
    if not isinstance(manifest, dict) or not {"sequence_length", "shards"} <= manifest.keys():
        raise ValueError(f"{location}: has no sequence_length and shards; {_mend(location)}")
    for name, value in {"kind": kind, **expected}.items():
        found = manifest.get(name)
        if found != value:
            raise ValueError(
                f"{location}: {name}={found!r}, but this run needs {value!r}; "
                f"make the {kind} anew with this run's settings, or use the others"
            )
    schema = _schema(manifest)
    with ThreadPoolExecutor(8) as pool:
        checks = [
            pool.submit(_check_shard, directory / name, rows, schema)
            for name, rows in manifest["shards"].items()
        ]
        for check in checks:
            check.result()
    return manifest


def open_parquet(handle: BinaryIO) -> pq.ParquetFile:
    """Open a shard whose pages are verified as they are read."""
    return pq.ParquetFile(handle, page_checksum_verification=True)


def verify_shards(directory: Location) -> None:
    """Read every page of a directory's shards.

    Raises:
        ValueError: in one line that names the first shard that is damaged.
    """
    for file in directory.files(".parquet"):
        with whole(file), file.open() as handle:
            for _ in open_parquet(handle).iter_batches():
                pass


@contextmanager
def whole(file: Location) -> Iterator[None]:
    """Name the shard whose content is not what was written.

    Raises:
        ValueError: in one line, with the mend.
    """
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: the shard is damaged ({reason}); {_mend(file)}") from error


def is_damage(error: object) -> bool:
    """Return whether pyarrow found content that was not written so, not a store out of reach."""
    signs = ("CRC checksum", "deserialize thrift", "orrupt", "nexpected end of stream")
    return any(sign in str(error) for sign in signs)


def memory_to_tensor(
    column: pa.ChunkedArray, memory_tokens: int, width: int, dtype: str
) -> Float[Tensor, "N L K D"]:
    """Return stored memories as a tensor on the column's own buffer (read-only) where it is whole.

    Args:
        column: the `memory` column of label rows.
        memory_tokens: K.
        width: D.
        dtype: `bfloat16` or `float32`, as in the manifest.
    """
    kind = DTYPES[dtype]
    stored = pa.int16() if kind is torch.bfloat16 else pa.float32()
    parts = []
    for chunk in column.chunks:
        numbers = chunk.type.byte_width // kind.itemsize
        flat = pa.Array.from_buffers(
            stored, len(chunk) * numbers, [None, chunk.buffers()[1]], offset=chunk.offset * numbers
        )
        values = torch.utils.dlpack.from_dlpack(flat).view(kind)
        parts.append(values.view(len(chunk), -1, memory_tokens, width))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def tensor_to_memory(memory: Float[Tensor, "N L K D"]) -> pa.FixedSizeBinaryArray:
    """Return memories (bf16 or fp32) as a `memory` column that shares the tensor's storage."""
    rows = memory.detach().cpu().contiguous()
    stored = rows.view(torch.int16) if rows.dtype is torch.bfloat16 else rows
    size = rows[0].numel() * rows.element_size()
    buffers = [None, pa.py_buffer(stored.numpy())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(rows), buffers)


def _schema(manifest: Manifest) -> pa.Schema:
    """Return the columns that the shards of a manifest must have."""
    length, targets = manifest["sequence_length"], manifest.get("targets", False)
    if manifest["kind"] == "tokens":
        return token_schema(length, targets=targets, covers=not targets or "bytes" in manifest)
    shape = (manifest["memory_tokens"], manifest["width"], manifest["dtype"])
    return label_schema(length, *shape, targets=targets)


def _check_shard(file: Location, rows: int, schema: pa.Schema) -> None:
    mend = _mend(file)
    try:
        with file.open() as handle:
            shard = open_parquet(handle)
            found, found_rows = shard.schema_arrow, shard.metadata.num_rows
    except FileNotFoundError as error:
        raise ValueError(f"{file}: the shard is missing; {mend}") from error
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise
        raise ValueError(f"{file}: the shard is truncated or not Parquet; {mend}") from error
    if {f.name: f.type for f in found} != {f.name: f.type for f in schema}:
        columns = ", ".join(f"{field.name}: {field.type}" for field in found)
        raise ValueError(f"{file}: foreign shard with columns ({columns}); remove it or {mend}")
    if found_rows != rows:
        raise ValueError(f"{file}: {found_rows} rows, but {rows} in the manifest; {mend}")


def _mend(file: Location) -> str:
    """Say what to do about a file in the directory of a split: the whole artifact is made anew."""
    return f"delete {file.parent.parent} and give the same command again"
