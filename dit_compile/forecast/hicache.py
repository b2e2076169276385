"""HiCache: TaylorSeer with Hermite polynomials in place of powers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import CacheConfig
from .base import Forecaster, register_forecaster
from .taylorseer import backward_differences


@register_forecaster("hicache")
class HiCache(Forecaster):
    """HiCache (arXiv:2508.16984), order ``taylor_order``, sigma = ``hicache_sigma`` (0.5 in the paper).

    With D_i and k as in ``taylorseer`` and the physicists' Hermite polynomials H_i, scaled inside and outside,

        forecast = sum_i sigma^i * H_i(sigma * k) / i! * D_i(latest),  H_0 = 1, H_1 = 2x, H_{i+1} = 2x H_i - 2i H_{i-1}

    as the authors' code computes it (k counts forward, whatever the sign of the timesteps). On a straight line it
    forecasts the part 2 sigma^2 of the change: half of it at 0.5, and all of it at sqrt(1/2), where order 1 is
    TaylorSeer. That damping is the method, not an accident of ours.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return config.taylor_order + 1

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        differences = backward_differences(steps, config.taylor_order)
        sigma = config.hicache_sigma
        x = sigma * (now - steps[-1])
        hermite = [1.0, 2 * x]
        while len(hermite) < len(differences):
            hermite.append(2 * x * hermite[-1] - 2 * (len(hermite) - 1) * hermite[-2])
        terms = [sigma**i * hermite[i] / math.factorial(i) for i in range(len(differences))]
        return [sum(term * d[j] for term, d in zip(terms, differences, strict=True)) for j in range(len(steps))]
