"""Transformer parts: what norms, positions and the partial last block promise."""

import pytest
import torch

from smt_ray.model.blocks import Block, rms_norm, rotate, rotation
from tests.samples import random_weights


def test_rms_norm_has_unit_mean_square_and_keeps_zero():
    x = torch.randn(5, 3, 8) * 7
    assert rms_norm(x).square().mean(-1).allclose(torch.ones(5, 3), atol=1e-5)
    assert rms_norm(torch.zeros(2, 8)).eq(0).all()


def test_rotated_products_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 12, 8)
    by = rotation(12, 8, query.device)
    scores = (rotate(query, by) @ rotate(key, by).mT)[0, 0]
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        assert diagonal.allclose(diagonal[:1].expand_as(diagonal), atol=1e-5)
    assert scores[0, 0].sub(scores[0, 5]).abs() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("last", [1, 3, 6])
def test_a_block_of_the_last_positions_is_the_end_of_the_whole(causal, last):
    block = random_weights(Block(8, 2, 2))
    x, by = torch.randn(4, 6, 8), rotation(6, 4, torch.device("cpu"))
    whole = block(x, by=by, causal=causal)
    assert block(x, by=by, causal=causal, last=last).allclose(whole[:, -last:], atol=1e-5)


def test_a_fresh_block_is_the_identity():
    x = torch.randn(4, 6, 8)
    assert torch.equal(Block(8, 2, 2)(x), x)
