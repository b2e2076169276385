"""TaylorSeer: backward differences in a Taylor series."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import CacheConfig
from .base import Forecaster, register_forecaster

FIRST_DIFFERENCE = 3  # cache-dit takes no differences with snapshots of steps 0 to 2 as the newer end


def backward_differences(steps: Sequence[int], order: int) -> list[list[float]]:
    """D_0, D_1, ... up to ``order`` at the latest snapshot, each as weights over all snapshots."""
    differences: list[list[float]] = []
    for j, step in enumerate(steps):
        current = [[float(i == j) for i in range(len(steps))]]
        if step >= FIRST_DIFFERENCE:
            for older, _ in zip(differences, range(order), strict=False):
                gap = step - steps[j - 1]
                current.append([(a - b) / gap for a, b in zip(current[-1], older, strict=True)])
        differences = current
    return differences


@register_forecaster("taylorseer")
class TaylorSeer(Forecaster):
    """TaylorSeer (arXiv:2503.06923), order ``taylor_order``, as cache-dit 1.0.14 and 1.5.3 compute it.

    With Y_j the snapshot of step s_j and k the steps since the latest one,

        D_0(j) = Y_j,  D_{i+1}(j) = (D_i(j) - D_i(j-1)) / (s_j - s_{j-1}),  forecast = sum_i k^i / i! * D_i(latest)

    Differences exist from step 3 on; before, the forecast has the order that the differences allow. Order 1 is exact on
    straight lines. Higher orders put backward differences where derivatives belong, so they are not exact even on a
    parabola; ``newton`` is.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return config.taylor_order + 1

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        differences = backward_differences(steps, config.taylor_order)
        horizon = now - steps[-1]
        terms = [horizon**i / math.factorial(i) for i in range(len(differences))]
        return [sum(term * d[j] for term, d in zip(terms, differences, strict=True)) for j in range(len(steps))]
