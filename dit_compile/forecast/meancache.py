"""MeanCache: the latest output, moved on by how the mean of the last outputs differs from the first of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CacheConfig
from .base import MAX_SNAPSHOTS, Forecaster, register_forecaster


@register_forecaster("meancache")
class MeanCache(Forecaster):
    """The forecast of MeanCache (arXiv:2601.19961; github.com/UnicomAI/MeanCache) with one span, ``meancache_span``.

    With v_i the outputs of all steps so far, forecasts included, x_i the latents, s_i the noise levels and n the span,

        mean = (x_t - x_{t-n}) / (s_t - s_{t-n}),  jvp = (v_{t-n} - mean) / (s_t - s_{t-n})
        forecast = v_{t-1} - jvp * (s_{t+1} - s_t)

    Under Euler's method x_t - x_{t-n} is the sum of v_i (s_{i+1} - s_i), so the forecast is linear in the outputs. With
    equal steps it is v_{t-1} + (mean of the last n - first of them) / n. Span 1 is plain reuse. On a straight line the
    forecast adds (n - 1) / 2n of the change per step, less than half of it: that damping is the method.

    The authors choose the span for each gap, from a table that was fitted offline, and move the whole output, guidance
    included; here it is one setting, and moves the region's effect in each branch. Steps before the oldest of the
    snapshots kept do not count, nor do unequal noise levels.
    """

    def snapshots(self, config: CacheConfig) -> int:
        return MAX_SNAPSHOTS

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        known = {step: [float(i == j) for i in range(len(steps))] for j, step in enumerate(steps)}
        outputs: list[list[float]] = []
        for step in range(steps[0], int(now) + 1):
            outputs.append(known[step] if step in known else _next(outputs[-config.meancache_span :]))
        return outputs[-1]


def _next(last: Sequence[Sequence[float]]) -> list[float]:
    """The forecast after the outputs ``last``, each given as weights of the snapshots."""
    count = len(last)
    return [
        new + (sum(outputs) / count - outputs[0]) / count
        for new, outputs in zip(last[-1], zip(*last, strict=True), strict=True)
    ]
