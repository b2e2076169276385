"""Spectrum: Chebyshev polynomials through all snapshots, mixed with a straight line through the latest two."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CacheConfig
from .base import MAX_SNAPSHOTS, Forecaster, register_forecaster

NOMINAL_STEPS = 50  # what the authors' code divides by, whatever the number of steps


def chebyshev(tau: float, degree: int) -> list[float]:
    """T_0 to T_degree at ``tau``."""
    values = [1.0, tau]
    while len(values) <= degree:
        values.append(2 * tau * values[-1] - values[-2])
    return values[: degree + 1]


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination; without exchange of rows, as the matrix is symmetric and positive definite."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, pivot in enumerate(rows):
        rows[i] = [value / pivot[i] for value in pivot]
        for j, row in enumerate(rows):
            if j != i:
                rows[j] = [a - row[i] * b for a, b in zip(row, rows[i], strict=True)]
    return [row[-1] for row in rows]


@register_forecaster("spectrum")
class Spectrum(Forecaster):
    """Spectrum (arXiv:2603.01623; github.com/hanjq17/Spectrum) over the last six snapshots.

    m = ``spectrum_degree``, lambda = ``spectrum_ridge``, w = ``spectrum_mix``; F_j is the snapshot of step s_j, F_s the
    latest, F_s' the one before, k the steps since s:

        tau(s) = 2s / N - 1,  X_ji = T_i(tau(s_j)),  c = (X^T X + lambda I)^-1 X^T (F - F_s)
        forecast = w * (F_s + T(tau(s + k)) c) + (1 - w) * (F_s + (F_s - F_s') * k / (s - s'))

    Two deviations. The paper fits F, so that lambda pulls also what never changes towards zero (by 4 to 24 % with six
    snapshots in 50 steps); fitting F - F_s is exact on constants. The paper fits all snapshots since the first step.

    N is ``num_steps``, or 50 as in the authors' code where it is not set, and never less than the step of the forecast,
    so that tau stays in [-1, 1]. The ridge also makes do with fewer snapshots than coefficients. Straight lines are
    exact for w = 0 only.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return MAX_SNAPSHOTS

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        total, degree, mix = max(config.num_steps or NOMINAL_STEPS, now), config.spectrum_degree, config.spectrum_mix
        design = [chebyshev(2 * step / total - 1, degree) for step in steps]
        columns = list(zip(*design, strict=True))
        gram = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in columns] for x in columns]
        for i in range(len(gram)):
            gram[i][i] += config.spectrum_ridge
        coefficients = solve(gram, chebyshev(2 * now / total - 1, degree))
        weights = [mix * sum(c * x for c, x in zip(coefficients, row, strict=True)) for row in design]
        if len(steps) > 1:
            weights[-2] -= (1 - mix) * (now - steps[-1]) / (steps[-1] - steps[-2])
        return [*weights[:-1], 1 - sum(weights[:-1])]
