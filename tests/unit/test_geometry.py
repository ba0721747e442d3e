"""Principal components against the eigenvectors of the covariance."""

import numpy as np
import torch

from smt_ray.evaluation.geometry import Plane

N, K, D = 50, 2, 3


def test_the_plane_is_that_of_the_largest_eigenvalues():
    memory = torch.randn(N, K, D) * torch.tensor([5.0, 1.0, 0.1]) + 2
    flat = memory.flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    found = Plane(memory).project(memory).numpy()
    np.testing.assert_allclose(found.var(0, ddof=1), values[::-1][:2], rtol=1e-6)
    expected = (flat - flat.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-5, atol=1e-6)


def test_others_are_seen_from_the_same_plane():
    memory = torch.randn(N, K, D)
    plane = Plane(memory)
    moved = plane.project(memory + 1) - plane.project(memory)
    assert torch.allclose(moved, moved[:1].expand_as(moved))
    assert torch.equal(Plane(memory).project(memory), plane.project(memory))
