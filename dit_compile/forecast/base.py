"""What a forecaster is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..config import CacheConfig
from ..registry import Registry

MAX_SNAPSHOTS = 6  # what the weighted-sum kernel takes


class Forecaster(ABC):
    """Predicts a region's effect as a weighted sum of what it was at earlier computed steps.

    The prediction is ``sum_j weights[j] * snapshot[j]`` and its weights depend on numbers alone, so a forecaster never
    touches a tensor and one kernel serves all of them.

    The numbers are those of steps. Only where ``follows_probe`` is set, a step that has read how much the probe has
    changed gives as ``now`` how far it has come on the way of the probe,

        now = s_2 + (s_1 - s_2) * sum|p - p_2| / sum|p_1 - p_2|

    with s_1 and s_2 the latest two steps, p_1 and p_2 their probes and p that of the step to predict. The sums are read
    with the difference, in one transfer. Steps that read nothing give their number: those of a policy without a probe,
    of lagged decisions, and of a branch that takes over the difference of another.
    """

    follows_probe: ClassVar[bool] = False

    @abstractmethod
    def snapshots(self, config: CacheConfig) -> int:
        """How many of the latest snapshots to keep, 1 to ``MAX_SNAPSHOTS``."""

    @abstractmethod
    def weights(self, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
        """One weight for each snapshot.

        ``steps`` are the step numbers of the snapshots in hand, oldest first (at least one, at most ``snapshots``);
        ``now`` is the step to predict, later than all of them (with ``follows_probe`` it may also be earlier).
        """


FORECASTERS: Registry[Forecaster] = Registry("forecaster")
register_forecaster = FORECASTERS.register
