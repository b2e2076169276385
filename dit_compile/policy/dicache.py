"""DiCache: reuse while the changes of the stream behind the first blocks have not added up."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, accumulated, forced, register_policy


@register_policy("dicache")
class DiCache(Policy):
    """The decision of DiCache (arXiv:2508.17356; github.com/Bujiazi/DiCache).

    With p_t the stream behind the first F blocks (the authors' probe, F = 1), reuse while

        sum_t mean|p_t - p_{t-1}| / mean|p_{t-1}|  <  residual_diff_threshold

    since the last computed step; 0.4 in the authors' code. ``forecast=dicache`` is the other half of the method. The
    authors compute the last step, whatever is measured (here a digit of ``step_mask`` does), and at first a share of
    the steps (``warmup_steps``).
    """

    reference = "previous"

    def tap(self, config: CacheConfig) -> str:
        return "hidden"

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        return forced(step, config)

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        hit = accumulated(step, diff) < config.residual_diff_threshold
        return Verdict(hit, "hit" if hit else "threshold")
