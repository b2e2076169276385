"""DBCache: reuse while the effect of the first blocks changes little."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, accumulated, forced, register_policy


@register_policy("dbcache")
class DBCache(Policy):
    """Dual block cache: the rule of cache-dit (github.com/vipshop/cache-dit) and of First Block Cache (ParaAttention).

    With r the residual of the first F blocks and p the same at the last computed step, reuse when

        mean|p - r| / mean|p| < residual_diff_threshold

    unless the step lies in the warm-up (0, I, 2I, ... below W), a ``step_mask`` digit of 1 asks for it, or
    ``max_cached_steps``, ``max_continuous_cached_steps`` or ``max_accumulated_diff`` is reached. The last is the sum
    of the differences since the last computed step (cache-dit 1.5.3 never resets its sum, so there it ends all reuse
    once it is reached). A threshold of 1 or more reuses without looking. With ``probe=hidden`` p and r are the stream
    behind the first F blocks itself.
    """

    ends_history = True

    def tap(self, config: CacheConfig) -> str:
        return config.probe

    def measures(self, config: CacheConfig) -> bool:
        return config.residual_diff_threshold < 1

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        threshold = config.residual_diff_threshold
        verdict = forced(step, config)
        if verdict is not None:
            return verdict
        if threshold <= 0:
            return Verdict(False, "threshold_off")
        if threshold >= 1:
            return Verdict(True, "hit")
        return None

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        if diff >= config.residual_diff_threshold:
            return Verdict(False, "threshold")
        total = accumulated(step, diff)
        if 0 <= config.max_accumulated_diff <= total:
            return Verdict(False, "accumulated_limit")
        return Verdict(True, "hit")
