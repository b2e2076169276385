"""DiCache: the line through the latest two snapshots, as far along as the probe has moved."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CacheConfig
from .base import Forecaster, register_forecaster


@register_forecaster("dicache")
class DiCache(Forecaster):
    """Trajectory alignment of DiCache (arXiv:2508.17356).

    F_1 and F_2 are the latest snapshots, p_1 and p_2 the probes of their steps, p that of this step:

        g = |p - p_2| / |p_1 - p_2|, between 1 and ``dicache_limit``     forecast = F_2 + g (F_1 - F_2)

    The limit is 1.5 in the authors' code, which takes g from the effect of the first blocks. Here p is what the policy
    measures: that effect with ``policy=dbcache``, the stream behind those blocks with ``policy=dicache``. Steps that
    measure no probe take the numbers of steps instead (see ``Forecaster.follows_probe``).
    """

    follows_probe = True

    def snapshots(self, config: CacheConfig) -> int:
        return 2

    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        if len(steps) == 1:
            return [1.0]
        ahead = (now - steps[-2]) / (steps[-1] - steps[-2])
        g = min(max(ahead, 1.0), config.dicache_limit)
        return [1 - g, g]
