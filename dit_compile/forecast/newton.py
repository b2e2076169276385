"""Newton: the polynomial through the latest snapshots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import CacheConfig
from .base import Forecaster, register_forecaster


def lagrange(steps: Sequence[int], at: float) -> list[float]:
    """The value at ``at`` of the polynomial through the values of ``steps``, as weights over these values."""
    return [math.prod((at - other) / (step - other) for other in steps if other != step) for step in steps]


@register_forecaster("newton")
class Newton(Forecaster):
    """Newton's divided differences on the real step numbers, order ``taylor_order``.

    The polynomial of degree n through n+1 snapshots is unique; in Lagrange's form its weights at step t are

        w_j = prod_{i != j} (t - s_i) / (s_j - s_i)

    Exact for polynomials up to degree n, also with uneven gaps between computed steps.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return config.taylor_order + 1

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        return lagrange(steps, now)
