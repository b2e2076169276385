"""What a forecaster is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..config import CacheConfig
from ..registry import Registry

MAX_SNAPSHOTS = 6  # what the weighted-sum kernel takes


class Forecaster(ABC):
    """Predicts a region's effect as a weighted sum of what it was at earlier computed steps.

    The prediction is ``sum_j weights[j] * snapshot[j]`` and its weights depend on step numbers alone, so a forecaster
    never touches a tensor and one kernel serves all of them.
    """

    @abstractmethod
    def snapshots(self, config: CacheConfig) -> int:
        """How many of the latest snapshots to keep, 1 to ``MAX_SNAPSHOTS``."""

    @abstractmethod
    def weights(self, steps: Sequence[int], now: int, config: CacheConfig) -> list[float]:
        """One weight for each snapshot.

        ``steps`` are the step numbers of the snapshots in hand, oldest first (at least one, at most ``snapshots``);
        ``now`` is the step to predict, later than all of them.
        """


FORECASTERS: Registry[Forecaster] = Registry("forecaster")
register_forecaster = FORECASTERS.register
