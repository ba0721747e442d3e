"""Power laws of a loss, L = a + b x^-c, fitted with confidence intervals."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import t as student

LEVEL = 0.95
"""Confidence of the intervals."""
FEWEST, FEWEST_WITH_FLOOR = 3, 5
"""Points that a pure power law, and one with a floor, are fitted to."""

Values = Float[np.ndarray, " N"]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L = a + b x^-c, a = 0 in its pure form; intervals of confidence `LEVEL`."""

    a: float
    b: float
    c: float
    a_interval: Interval
    b_interval: Interval
    c_interval: Interval
    points: int

    @property
    def form(self) -> str:
        """Which form was fitted."""
        return "a + b x^-c" if self.a else "b x^-c"

    def __call__(self, x: Values) -> Values:
        """Return the losses at `x`."""
        return self.a + self.b * x**-self.c


def fit_power_law(x: Sequence[float], loss: Sequence[float]) -> PowerLaw | None:
    """Fit by least squares, as if all losses were off by the same amount.

    A floor a > 0 is fitted where there are points enough and it lowers the residual variance per
    degree of freedom; otherwise the law is pure. The intervals are those of Student's t for the
    covariance that the curvature gives; a and b are fitted as logarithms, so that theirs are
    positive, and not symmetric.

    Returns:
        The law; None for fewer than three different x, or if no law can be fitted.
    """
    sizes, losses = np.asarray(x, float), np.asarray(loss, float)
    if len(np.unique(sizes)) < FEWEST or losses.min() <= 0 or sizes.min() <= 0:
        return None
    logs = np.log(sizes)
    middle = logs.mean()
    spread = logs - middle
    pure = _least_squares(_pure, spread, losses, [(np.log(losses.mean()), c) for c in (0.1, 0.5)])
    floored = None
    if len(np.unique(sizes)) >= FEWEST_WITH_FLOOR:
        low, high = losses.min(), losses.max()
        starts = [
            (np.log(share * low), np.log(max(high - share * low, 1e-9)), c)
            for share, c in product((0.3, 0.9), (0.2, 0.5, 1.0))
        ]
        floored = _least_squares(_floored, spread, losses, starts)
    found = min((fit for fit in (pure, floored) if fit), key=lambda fit: fit[2], default=None)
    if found is None:
        return None
    values, covariance, _ = found
    reach = float(student.ppf((1 + LEVEL) / 2, len(losses) - len(values)))
    # b belongs to x itself, the fit to x over its geometric mean: log b = beta + c log(mean).
    mixing = np.eye(len(values))
    mixing[-2, -1] = middle
    values, covariance = mixing @ values, mixing @ covariance @ mixing.T
    errors = reach * np.sqrt(np.diag(covariance))
    with np.errstate(over="ignore"):
        bounds = [
            (value - error, value + error) for value, error in zip(values, errors, strict=True)
        ]
        positive = [(float(np.exp(low)), float(np.exp(high))) for low, high in bounds]
        a = (float(np.exp(values[0])), positive[0]) if len(values) == 3 else (0.0, (0.0, 0.0))
        b = float(np.exp(values[-2]))
    low, high = bounds[-1]
    return PowerLaw(
        *(a[0], b, float(values[-1])),
        *(a[1], positive[-2], (float(low), float(high))),
        points=len(losses),
    )


def _pure(spread: Values, beta: float, c: float) -> Values:
    return np.exp(beta - c * spread)


def _floored(spread: Values, alpha: float, beta: float, c: float) -> Values:
    return np.exp(alpha) + np.exp(beta - c * spread)


def _least_squares(
    model: Any, spread: Values, losses: Values, starts: Sequence[tuple[float, ...]]
) -> tuple[Any, Any, float] | None:
    """Return the best fit's values, covariance and residual variance; None if there is none."""
    fits = []
    for start in starts:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", OptimizeWarning)
                values, covariance = curve_fit(model, spread, losses, start, maxfev=10_000)
        except (RuntimeError, ValueError):  # it did not converge, or left the finite numbers
            continue
        if np.isfinite(covariance).all():
            rest = np.square(losses - model(spread, *values)).sum()
            fits.append((values, covariance, float(rest / (len(losses) - len(start)))))
    return min(fits, key=lambda fit: fit[2], default=None)
