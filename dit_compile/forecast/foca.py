"""FoCa: a predictor and a corrector for the differential equation of the features."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CacheConfig
from .base import Forecaster, register_forecaster


@register_forecaster("foca")
class FoCa(Forecaster):
    """FoCa (arXiv:2508.16211): a BDF2 predictor, corrected by Heun's trapezoidal rule.

    F_0 is the latest of three snapshots, h the steps to the forecast, g and e the gaps before F_0 and F_1, u = h / g,
    r = g / e:

        slope      D = ((1 + 2r) F_0 - (1 + r)^2 F_1 + r^2 F_2) / (1 + r) / g
        predictor  P = ((1 + u)^2 F_0 - u^2 F_1 + (1 + u) h D) / (1 + 2u)
        corrector  forecast = F_0 + h/2 * (D + (P - F_0) / h)

    For equal gaps these are the paper's equations 6 to 8 (3/2, -2, 1/2; 4/3, -1/3, 2/3). The paper leaves open where
    its slopes come from, so this is our reading: D is its BDF2 derivative at the latest computed step, from where every
    forecast starts; the slope at the forecast is the secant to P, because the BDF2 derivative there is D again and
    would cancel the predictor. Exact on straight lines. Of two snapshots only the straight line is left.

    The FoCa of cache-dit 1.5.3 is another rule: it evaluates no predictor and divides no difference by its gap.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return 3

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        latest = [0.0] * (len(steps) - 1) + [1.0]
        if len(steps) == 1:
            return latest
        ahead, gap = now - steps[-1], steps[-1] - steps[-2]
        slope = [-1 / gap, 1 / gap]
        if len(steps) > 2:
            r = gap / (steps[-2] - steps[-3])
            slope = [c / (1 + r) / gap for c in (r * r, -((1 + r) ** 2), 1 + 2 * r)]
        u = ahead / gap
        predictor = [(1 + u) * ahead * d / (1 + 2 * u) for d in slope]
        predictor[-1] += (1 + u) ** 2 / (1 + 2 * u)
        predictor[-2] -= u * u / (1 + 2 * u)
        return [f + (ahead * d + (p - f)) / 2 for f, d, p in zip(latest, slope, predictor, strict=True)]
