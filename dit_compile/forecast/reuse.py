"""Reuse: nothing has changed since the last computed step."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CacheConfig
from .base import Forecaster, register_forecaster


@register_forecaster("reuse")
class Reuse(Forecaster):
    """The latest snapshot as it is (First Block Cache, DBCache without calibrator)."""

    def snapshots(self, config: CacheConfig) -> int:
        return 1

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        return [0.0] * (len(steps) - 1) + [1.0]
