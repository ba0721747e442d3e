"""Which sequences get labels, and which label shard holds them."""

import itertools

import numpy as np
import pytest

from smt_ray.config import RunConfig
from smt_ray.data.storage import Location
from smt_ray.labels.factory import Split, label_fields
from smt_ray.labels.label_shards import (
    FEWEST,
    LARGEST,
    LEAST,
    enough,
    keep,
    label_shards,
    listed,
    shard_rows,
)


def test_at_fraction_one_every_sequence_is_kept():
    """The hash of 12,259,218 is so near 2^62 that float32 rounds it to that."""
    ids = np.array([0, 12_259_218, 2**63 - 1])
    assert keep(ids, 1.0).all()


def test_a_fraction_is_kept_and_a_larger_one_keeps_those_too():
    ids = np.arange(20_000)
    kept = [keep(ids, fraction) for fraction in (0.0, 0.1, 0.5, 0.999, 1.0)]
    for few, more in itertools.pairwise(kept):
        assert not (few & ~more).any()
    assert [k.mean() for k in kept] == pytest.approx([0, 0.1, 0.5, 0.999, 1], abs=0.01)


def manifest(*rows):
    """Return the manifest of token shards with so many rows; each is a unit of its own."""
    shards = {
        f"{number:06d}-0000.parquet": {"rows": count, "first_id": number << 32, "bytes": 1}
        for number, count in enumerate(rows)
    }
    return {"shards": shards, "sequences": sum(rows)}


@pytest.mark.parametrize("fraction", [1.0, 0.25, 0.01])
@pytest.mark.parametrize("row_bytes", [100, 1 << 20])
def test_parts_are_the_rows_of_token_shards_in_order(row_bytes, fraction):
    tokens = manifest(70_001, 1, 4_096)
    found = [*label_shards(tokens, row_bytes, fraction)]
    names = [part.name for part in found]
    assert names == sorted({*names})
    ids = np.concatenate([np.arange(p.first_id, p.first_id + p.rows) for p in found])
    expected = [np.arange(n) + (shard << 32) for shard, n in enumerate((70_001, 1, 4_096))]
    assert np.array_equal(ids, np.concatenate(expected))
    sizes = dict.fromkeys(names, 7)
    counts = listed(tokens, row_bytes, fraction, sizes)
    assert [*counts] == names
    assert sum(count["rows"] for count in counts.values()) == keep(ids, fraction).sum()


def test_a_part_is_neither_too_large_nor_one_of_too_few():
    for sequences in (10, 1000, 10**6, 10**9):
        for row_bytes in (10**3, 10**6, 10**8, 10**10):
            for fraction in (1.0, 0.01):
                rows = shard_rows(sequences, row_bytes, fraction)
                assert rows & (rows - 1) == 0, "a power of two, as batches are"
                assert rows == 1 or rows * row_bytes * fraction <= LARGEST
                few = max(sequences / FEWEST, LEAST / fraction)
                assert rows <= few, "an interruption loses little"
                assert rows > min(few, LARGEST / (row_bytes * fraction)) / 2 or rows == 1


def test_counting_ends_when_there_are_enough():
    tokens = manifest(10**5, 10**5)
    assert enough(tokens, 0.5, 1000)
    assert not enough(tokens, 0.001, 1000)


def test_a_lost_label_shard_is_named_when_the_stage_ends(tmp_path):
    tokens = manifest(300) | {"split": "train", "vocabulary": 257, "targets": 0}
    fields, place = label_fields(RunConfig(), "teacher0", tokens), Location.of(tmp_path)
    split = Split(place / "tokens", tokens, place, fields, 1.0)
    *there, lost = [shard.name for shard in split.missing()]
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{lost}: is gone; the same command makes it again"):
        split.finish()
