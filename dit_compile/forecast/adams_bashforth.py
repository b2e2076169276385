"""Adams-Bashforth: the slopes at the latest snapshots, prolonged as a polynomial and integrated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import CacheConfig
from .base import MAX_SNAPSHOTS, Forecaster, register_forecaster
from .newton import lagrange

GAUSS = (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12))  # both of weight 1/2; exact up to degree 3


@register_forecaster("adams_bashforth")
class AdamsBashforth(Forecaster):
    """The linear multistep method of Adams and Bashforth with variable gaps (Hairer, Norsett, Wanner, Solving Ordinary
    Differential Equations I, III.1 and III.5), of order n = ``taylor_order``, at most 3.

    F_0 is the latest snapshot, of step s, and t the step to predict. D_j is the slope at the j-th latest snapshot: of
    the polynomial through it and the n before it (the backward differentiation formula of order n). Then

        forecast = F_0 + integral from s to t of P,    P the polynomial through D_0 ... D_{n-1}

    For equal gaps and t one gap ahead that is F_0 + g D_0 of order 1, F_0 + g (3/2 D_0 - 1/2 D_1) of order 2, and F_0 +
    g (23/12 D_0 - 16/12 D_1 + 5/12 D_2) of order 3. Exact for polynomials up to degree n. The slopes need 2 n snapshots
    in all, so with fewer of them the order is lower; 1 is the straight line.

    Adams-Bashforth for caches is the idea of AB-Cache (arXiv:2504.10540), which applies it to the model's output as the
    derivative of the latents. Here it is applied to what a cache keeps, the effect of the blocks; its derivative is not
    computed by the model, hence the formulas for D_j.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return max(min(2 * config.taylor_order, MAX_SNAPSHOTS), 1)

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        weights = [0.0] * (len(steps) - 1) + [1.0]
        order = min(config.taylor_order, len(steps) // 2)
        ahead, ends = now - steps[-1], range(len(steps) - order, len(steps))
        for node in GAUSS:
            shares = lagrange([steps[end] for end in ends], steps[-1] + node * ahead)
            for end, share in zip(ends, shares, strict=True):
                for j, slope in enumerate(last_slope(steps[end - order : end + 1]), end - order):
                    weights[j] += ahead / len(GAUSS) * share * slope
        return weights


def last_slope(steps: Sequence[int]) -> list[float]:
    """The slope at the last of ``steps`` of the polynomial through all of them, as weights over their values."""
    *others, last = steps
    slopes = []
    for step in others:
        rest = [other for other in others if other != step]
        slopes.append(math.prod((last - other) / (step - other) for other in rest) / (step - last))
    return [*slopes, -sum(slopes)]
