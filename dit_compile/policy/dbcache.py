"""DBCache: reuse while the effect of the first blocks changes little."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, register_policy


@register_policy("dbcache")
class DBCache(Policy):
    """Dual block cache: the rule of cache-dit (github.com/vipshop/cache-dit) and of First Block Cache (ParaAttention).

    With r the residual of the first F blocks and p the same at the last computed step, reuse when

        mean|p - r| / mean|p| < residual_diff_threshold

    unless the step lies in the warm-up (0, I, 2I, ... below W), a ``step_mask`` digit of 1 asks for it, or
    ``max_cached_steps`` or ``max_continuous_cached_steps`` is reached. A threshold of 1 or more reuses without looking.
    """

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        threshold = config.residual_diff_threshold
        if step.index < config.warmup_steps and step.index % config.warmup_interval == 0:
            return Verdict(False, "warmup")
        if config.step_mask is not None and config.step_mask[step.index : step.index + 1] == "1":
            return Verdict(False, "mask")
        if 0 <= config.max_cached_steps <= step.cached:
            return Verdict(False, "cached_limit")
        if 0 <= config.max_continuous_cached_steps <= step.run:
            return Verdict(False, "consecutive_limit")
        if threshold <= 0:
            return Verdict(False, "threshold_off")
        if threshold >= 1:
            return Verdict(True, "hit")
        return None

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        hit = diff < config.residual_diff_threshold
        return Verdict(hit, "hit" if hit else "threshold")
