"""Shards: windows against a plain loop, what a directory is checked for, memories bit by bit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smt_ray.data.manifest import (
    MANIFEST,
    Shards,
    check_shards,
    open_manifest,
    schema_of,
    write_manifest,
)
from smt_ray.data.packer import ExamplePacker, Examples, WindowPacker
from smt_ray.data.rows import to_columns
from smt_ray.data.shards import (
    from_memory,
    label_schema,
    row_group_rows,
    target_type,
    to_column,
    to_memory,
    token_schema,
    token_type,
)
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import ByteTokenizer
from tests.samples import tokens_of

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
    assert [row for table in tables for row in tokens_of(table, 256).tolist()] == expected
    assert [n for table in tables for n in table["bytes"].to_pylist()] == covered
    ids = [i for table in tables for i in table["sequence_id"].to_pylist()]
    assert ids == [(3 << 32) + n for n in range(len(expected))]
    assert all(len(table) == rows for table in tables[:-1])
    counts = (packer.documents, packer.tokens, packer.bytes)
    assert counts == (len(documents), tokens, sum(covered))
    assert all(table.schema == token_schema(L, 256) for table in tables)


def test_token_arrays_are_packed_as_they_are():
    tables = list(
        WindowPacker(ByteTokenizer(), 2, unit=0).tables([np.array([5, 6, 7], np.int32)], 8)
    )
    assert tokens_of(tables[0], 256).tolist() == [[5, 6, 7]]


def test_row_groups_hold_about_four_mebibytes():
    assert [row_group_rows(n) for n in (1, 4096, 1 << 20, 1 << 30)] == [1024, 1024, 4, 1]


@pytest.mark.parametrize("vocabulary", [2, 128, 129, 256, 257, 32_768, 32_769, 65_536, 65_537])
def test_tokens_and_targets_are_as_narrow_as_the_vocabulary_allows(vocabulary):
    ids = np.array([[0, vocabulary - 1]])
    tokens, targets = token_type(vocabulary), target_type(vocabulary)
    assert ids.astype(tokens).tolist() == ids.tolist()
    wanted = np.array([[-100, vocabulary - 1]])
    assert wanted.astype(targets).tolist() == wanted.tolist()
    assert tokens.itemsize == (1 if vocabulary <= 256 else 2 if vocabulary <= 65_536 else 4)
    assert targets.itemsize == (1 if vocabulary <= 128 else 2 if vocabulary <= 32_768 else 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memories_survive_bit_by_bit(tmp_path, dtype):
    kind = getattr(torch, dtype)
    memory = torch.randn(10, L, K, D).to(kind)
    memory[0, 0, 0, :3] = torch.tensor([float("inf"), -0.0, 1e-40])
    column = to_column(to_memory(memory, dtype)["memory"])
    assert column.type == label_schema(L, 256, K, D, dtype).field("memory").type
    assert column[1].as_py() == memory[1].view(torch.uint8).numpy().tobytes()
    pq.write_table(pa.table({"memory": column}), tmp_path / "x.parquet", row_group_size=4)
    stored = pq.read_table(tmp_path / "x.parquet")
    for start, stop in ((0, 10), (3, 9), (9, 10)):
        columns = to_columns(stored.slice(start, stop - start))
        own = {name: value.copy() for name, value in columns.items()}
        found = from_memory(own, K, D, dtype)
        assert found.dtype == kind
        assert torch.equal(found.view(torch.uint8), memory[start:stop].view(torch.uint8))


def test_memories_of_eight_bits_are_as_near_as_these_allow():
    memory = torch.randn(5, L, K, D) * torch.rand(5, L, K, 1) * 10
    memory[0, 0, 0] = 0
    columns = to_memory(memory.bfloat16().float(), "int8")
    schema = label_schema(L, 256, K, D, "int8")
    assert schema.names[-2:] == ["memory", "scale"]
    for name, value in columns.items():
        assert value.shape[1] == schema.field(name).type.byte_width
    found = from_memory(columns, K, D, "int8")
    step = memory.abs().amax(-1, keepdim=True) / 127
    assert ((found - memory).abs() <= 0.6 * step + memory.abs() / 256 + 1e-6).all()
    assert found[0, 0, 0].eq(0).all()
    again = from_memory(to_memory(found, "int8"), K, D, "int8")
    torch.testing.assert_close(again, found, rtol=2e-3, atol=1e-3)


FIELDS = {
    "kind": "labels",
    "split": "train",
    "sequence_length": L,
    "memory_tokens": K,
    "width": D,
    "dtype": "float32",
    "encoder": "abc",
    "vocabulary": 256,
    "targets": False,
}


@pytest.fixture
def labels(tmp_path):
    """A directory with two label shards of 4 rows each."""
    place = Location.of(tmp_path / "labels").make_dir()
    for name in ("a.parquet", "b.parquet"):
        table = pa.table(
            {
                "sequence_id": np.arange(4),
                "tokens": to_column(np.ones((4, L + 1), np.uint8)),
                "memory": to_column(to_memory(torch.randn(4, L, K, D), "float32")["memory"]),
            }
        )
        pq.write_table(table.cast(schema_of(FIELDS)), (place / name).path)
    sizes = place.sizes(".parquet")
    shards = {name: {"rows": 4, "first_id": 0, "bytes": size} for name, size in sizes.items()}
    write_manifest(place, FIELDS, shards)
    return place


def test_rows_with_targets_are_told_from_windows(tmp_path):
    for name, covers in (("pixels", True), ("task", False)):
        examples = Examples(*np.arange(4 * L, dtype=np.int32).reshape(2, 2, L))
        packer = ExamplePacker(64, L, unit=3, covers=covers)
        (table,) = packer.tables([examples], 8)
        assert (packer.documents, packer.tokens, packer.bytes) == (2, 2 * L, covers * 2 * L)
        assert table["sequence_id"].to_pylist() == [3 << 32, (3 << 32) + 1]
        place = Location.of(tmp_path / name).make_dir()
        pq.write_table(table, (place / "a.parquet").path)
        size = (place / "a.parquet").size()
        shards = {"a.parquet": {"rows": 2, "first_id": 3 << 32, "bytes": size}}
        own = {"kind": "tokens", "sequence_length": L, "vocabulary": 64}
        covered = {"bytes": 2 * L} if covers else {}
        write_manifest(place, {**own, "targets": True, **covered}, shards)
        manifest = open_manifest(place, "tokens", targets=True)
        check_shards(place, manifest)
        assert Shards(place, manifest).table(0, 1, 1).equals(table.slice(1))
        with pytest.raises(ValueError, match="targets=True, but this run needs False; make the to"):
            open_manifest(place, "tokens", targets=False)
        write_manifest(place, {**own, "targets": False}, shards)
        with pytest.raises(
            ValueError, match=r"a\.parquet: foreign shard with columns .*targets: f"
        ):
            Shards(place, open_manifest(place, "tokens")).open(0)


def test_labels_have_the_targets_of_their_tokens():
    for targets in (False, True):
        tokens = token_schema(L, 256, targets=targets, covers=False)
        labels = label_schema(L, 256, K, D, "float32", targets=targets)
        assert labels.names == [*tokens.names, "memory"]
        assert [labels.field(name) for name in tokens.names] == list(tokens)


EXPECTED = {"sequence_length": L, "memory_tokens": K, "width": D, "encoder": "abc"}


def opened(directory, kind="labels", **expected):
    """Open every shard of a directory, after its manifest and the listing."""
    manifest = open_manifest(directory, kind, **expected)
    check_shards(directory, manifest)
    return [Shards(directory, manifest).open(number) for number in range(len(manifest["shards"]))]


def test_whole_shards_open(labels):
    assert [shard.metadata.num_rows for shard in opened(labels, **EXPECTED)] == [4, 4]
    assert open_manifest(labels, "labels")["sequences"] == 8


def refused(directory, *words, **changes):
    with pytest.raises(ValueError, match=r"[;]") as caught:
        opened(directory, **{"kind": "labels", **EXPECTED, **changes})
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
    manifest = open_manifest(labels, "labels")
    whole = pq.read_table((labels / "b.parquet").path)

    def replaced(table, *words):
        """Write another shard, and look at it with and without the listing."""
        pq.write_table(table, (labels / "b.parquet").path)
        refused(labels, "b.parquet", "truncated or foreign", "in the manifest")
        with pytest.raises(ValueError, match=r"b\.parquet: ") as caught:
            Shards(labels, manifest).open(1)
        assert all(word in str(caught.value) for word in words)

    replaced(whole.slice(1), "3 rows, but 4")
    replaced(whole.drop_columns(["memory"]), "foreign shard", "sequence_id: int64")
    (labels / "b.parquet").delete()
    refused(labels, "b.parquet", "missing")
    with pytest.raises(ValueError, match=r"b\.parquet: the shard is missing; delete "):
        Shards(labels, manifest).open(1)
