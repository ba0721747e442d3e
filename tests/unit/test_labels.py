"""Which sequences get labels."""

import itertools

import numpy as np
import pytest

from smt_ray.labels.factory import keep


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
