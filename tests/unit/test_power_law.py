"""Fits of power laws recover known exponents, and their intervals cover them as often as said."""

import numpy as np
import pytest

from smt_ray.studies.power_law import fit_power_law


def fitted(x, loss):
    law = fit_power_law(x, loss)
    assert law is not None
    return law


def test_exact_laws_are_recovered():
    x = np.geomspace(1e3, 1e7, 8)
    law = fitted(x, 1.7 + 40 * x**-0.34)
    assert law.form == "a + b x^-c"
    assert (law.a, law.b, law.c) == pytest.approx((1.7, 40, 0.34), rel=1e-4)
    np.testing.assert_allclose(law(x), 1.7 + 40 * x**-0.34, rtol=1e-6)
    law = fitted(x[:4], 40 * x[:4] ** -0.34)
    assert law.form == "b x^-c"
    assert (law.a, law.b, law.c) == pytest.approx((0, 40, 0.34), rel=1e-6)
    assert law.points == 4


@pytest.mark.parametrize(("count", "floor"), [(4, 0.0), (12, 1.5)])
def test_intervals_cover_the_truth(count, floor):
    random = np.random.default_rng(0)
    x = np.geomspace(1e3, 1e6, count)
    covered = np.zeros(3)
    for _ in range(200):
        loss = floor + 30 * x**-0.4 + random.normal(0, 0.005, count)
        law = fitted(x, loss)
        intervals = law.a_interval, law.b_interval, law.c_interval
        for n, ((low, high), truth) in enumerate(zip(intervals, (floor, 30, 0.4), strict=True)):
            covered[n] += low <= truth <= high
    # 95 %, with room for chance (3 sigma) and for curvature.
    assert (covered >= 180).all()
    assert (covered[1:] < 200).all()


def test_what_cannot_be_fitted_has_no_law():
    assert fit_power_law([1, 2, 2], [3, 2, 2]) is None
    assert fit_power_law([1, 2, 3], [3, 2, 0]) is None


def test_a_loss_that_does_not_fall_has_an_exponent_that_says_so():
    law = fitted([1, 2, 4, 8], [2.0, 2.01, 1.99, 2.0])
    low, high = law.c_interval
    assert low < 0 < high
