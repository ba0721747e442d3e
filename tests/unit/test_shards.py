"""Shards: windows against a plain loop, what a directory is checked for, memories bit by bit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smt_ray.data.packer import ExamplePacker, Examples, WindowPacker
from smt_ray.data.shards import (
    MANIFEST,
    label_schema,
    memory_to_tensor,
    open_shards,
    row_group_rows,
    tensor_to_memory,
    token_schema,
)
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import ByteTokenizer

L, K, D = 6, 2, 4


def windows(documents, length, separator=0):
    """The plain loop that defines the windows and the bytes they cover."""
    stream = [t for n, doc in enumerate(documents) for t in ([separator] if n else []) + list(doc)]
    starts = range(0, len(stream) - length, length)
    rows = [stream[start : start + length + 1] for start in starts]
    return rows, [sum(token != separator for token in row[1:]) for row in rows], len(stream)


@pytest.mark.parametrize("rows", [1, 3, 1024])
@pytest.mark.parametrize("sizes", [[7], [6], [3, 0, 1, 40, 2], [100, 55, 13], [1] * 50, []])
def test_windows_equal_the_plain_loop(rows, sizes):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 256, size, dtype=np.uint8).tobytes() for size in sizes]
    packer = WindowPacker(ByteTokenizer(), L, unit=3)
    tables = list(packer.tables(documents, rows))
    expected, covered, tokens = windows(documents, L)
    assert [row for table in tables for row in table["tokens"].to_pylist()] == expected
    assert [n for table in tables for n in table["bytes"].to_pylist()] == covered
    ids = [i for table in tables for i in table["sequence_id"].to_pylist()]
    assert ids == [(3 << 32) + n for n in range(len(expected))]
    assert all(len(table) == rows for table in tables[:-1])
    counts = (packer.documents, packer.tokens, packer.bytes)
    assert counts == (len(documents), tokens, sum(covered))
    assert all(table.schema == token_schema(L) for table in tables)


def test_token_arrays_are_packed_as_they_are():
    tables = list(
        WindowPacker(ByteTokenizer(), 2, unit=0).tables([np.array([5, 6, 7], np.int32)], 8)
    )
    assert tables[0]["tokens"].to_pylist() == [[5, 6, 7]]


def test_row_groups_hold_about_four_mebibytes():
    assert [row_group_rows(n) for n in (1, 4096, 1 << 20, 1 << 30)] == [1024, 1024, 4, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memories_survive_bit_by_bit(tmp_path, dtype):
    kind = getattr(torch, dtype)
    memory = torch.randn(10, L, K, D).to(kind)
    memory[0, 0, 0, :3] = torch.tensor([float("inf"), -0.0, 1e-40])
    column = tensor_to_memory(memory)
    assert column.type == label_schema(L, K, D, dtype).field("memory").type
    assert column[1].as_py() == memory[1].view(torch.uint8).numpy().tobytes()
    pq.write_table(pa.table({"memory": column}), tmp_path / "x.parquet", row_group_size=4)
    stored = pq.read_table(tmp_path / "x.parquet")["memory"]
    for start, stop in ((0, 10), (3, 9), (9, 10)):
        found = memory_to_tensor(stored.slice(start, stop - start), K, D, dtype)
        assert found.dtype == kind
        assert torch.equal(found.view(torch.uint8), memory[start:stop].view(torch.uint8))


def test_one_chunk_of_memories_is_not_copied():
    column = tensor_to_memory(torch.randn(4, L, K, D))
    chunked = pa.chunked_array([column])
    assert memory_to_tensor(chunked, K, D, "float32").data_ptr() == column.buffers()[1].address


@pytest.fixture
def labels(tmp_path):
    """A directory with two label shards of 4 rows each."""
    place = Location.of(tmp_path / "labels").make_dir()
    for name in ("a.parquet", "b.parquet"):
        table = pa.table(
            {
                "sequence_id": np.arange(4),
                "tokens": pa.array(
                    np.ones((4, L + 1), np.int32).tolist(), pa.list_(pa.int32(), L + 1)
                ),
                "memory": tensor_to_memory(torch.randn(4, L, K, D)),
            }
        )
        pq.write_table(table, (place / name).path)
    (place / MANIFEST).write_json(
        {
            "kind": "labels",
            "split": "train",
            "sequences": 8,
            "sequence_length": L,
            "memory_tokens": K,
            "width": D,
            "dtype": "float32",
            "encoder": "abc",
            "vocabulary": 256,
            "shards": {"a.parquet": 4, "b.parquet": 4},
        }
    )
    return place


def test_rows_with_targets_are_told_from_windows(tmp_path):
    for name, covers in (("pixels", True), ("task", False)):
        examples = Examples(*np.arange(4 * L, dtype=np.int32).reshape(2, 2, L))
        packer = ExamplePacker(L, unit=3, covers=covers)
        (table,) = packer.tables([examples], 8)
        assert (packer.documents, packer.tokens, packer.bytes) == (2, 2 * L, covers * 2 * L)
        assert table["sequence_id"].to_pylist() == [3 << 32, (3 << 32) + 1]
        place = Location.of(tmp_path / name).make_dir()
        pq.write_table(table, (place / "a.parquet").path)
        manifest = {"kind": "tokens", "sequence_length": L, "shards": {"a.parquet": 2}}
        covered = {"bytes": 2 * L} if covers else {}
        (place / MANIFEST).write_json({**manifest, "targets": True, **covered})
        assert open_shards(place, "tokens", targets=True)["shards"] == {"a.parquet": 2}
        with pytest.raises(ValueError, match="targets=True, but this run needs False; make the to"):
            open_shards(place, "tokens", targets=False)
        (place / MANIFEST).write_json(manifest)
        with pytest.raises(
            ValueError, match=r"a\.parquet: foreign shard with columns .*targets: f"
        ):
            open_shards(place, "tokens")


def test_labels_have_the_targets_of_their_tokens():
    for targets in (False, True):
        tokens = token_schema(L, targets=targets, covers=False)
        labels = label_schema(L, K, D, "float32", targets=targets)
        assert labels.names == [*tokens.names, "memory"]
        assert [labels.field(name) for name in tokens.names] == list(tokens)


EXPECTED = {"sequence_length": L, "memory_tokens": K, "width": D, "encoder": "abc"}


def test_whole_shards_open(labels):
    assert open_shards(labels, "labels", **EXPECTED)["sequences"] == 8


def refused(directory, *words, **changes):
    with pytest.raises(ValueError, match=r"[;]") as caught:
        open_shards(directory, **{"kind": "labels", **EXPECTED, **changes})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_shards_of_another_model_or_kind_are_refused(labels):
    refused(labels, MANIFEST, "encoder", "'abc'", "'def'", encoder="def")
    refused(labels, MANIFEST, "memory_tokens=2", "16", memory_tokens=16)
    refused(labels, MANIFEST, "kind='labels'", "'tokens'", kind="tokens")


def test_directory_without_manifest_is_refused(tmp_path):
    refused(Location.of(tmp_path), MANIFEST, "no such file")


def test_truncated_shard_is_named(labels):
    content = (labels / "b.parquet").read_bytes()
    (labels / "b.parquet").write_bytes(content[: len(content) // 2])
    refused(labels, "b.parquet", "truncated")
    (labels / "b.parquet").write_bytes(b"")
    refused(labels, "b.parquet", "truncated")


def test_missing_foreign_or_short_shard_is_named(labels):
    whole = pq.read_table((labels / "b.parquet").path)
    pq.write_table(whole.slice(1), (labels / "b.parquet").path)
    refused(labels, "b.parquet", "3 rows, but 4")
    pq.write_table(whole.drop_columns(["memory"]), (labels / "b.parquet").path)
    refused(labels, "b.parquet", "foreign shard", "sequence_id: int64")
    (labels / "b.parquet").filesystem.delete_file((labels / "b.parquet").path)
    refused(labels, "b.parquet", "missing")
