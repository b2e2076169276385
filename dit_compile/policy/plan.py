"""Plan: the steps to compute were chosen beforehand, for this model and these times."""

from __future__ import annotations

from collections.abc import Container, Mapping

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, register_policy

OUT_OF_FAMILY = 4.0  # times the largest difference that the calibration runs have measured at this step


@register_policy("plan")
class PlannedSteps(Policy):
    """Reuses at the steps ``forecast`` of a plan (setting ``plan``) and computes all others. No data is looked at."""

    needs_probe = False

    def __init__(self, forecast: Container[int] = ()) -> None:
        self._forecast = forecast

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        hit = step.index in self._forecast
        return Verdict(hit, "hit" if hit else "plan")


class GuardedSteps(PlannedSteps):
    """The same with the setting ``plan_guard``: a step is computed all the same when its difference is more than
    ``OUT_OF_FAMILY`` times ``differences``, the largest one that calibration has seen there."""

    needs_probe = True

    def __init__(self, forecast: Container[int], differences: Mapping[int, float]) -> None:
        super().__init__(forecast)
        self._differences = differences

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        return None if step.index in self._forecast else Verdict(False, "plan")

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        hit = diff <= OUT_OF_FAMILY * self._differences.get(step.index, 0.0)
        return Verdict(hit, "hit" if hit else "out_of_family")
