"""AdaCache: the more the region has changed, the sooner it is computed again."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, forced, register_policy


@register_policy("adacache")
class AdaCache(Policy):
    """AdaCache (arXiv:2411.02397), without its motion regularisation.

    After a computed step, with R the region's residual now and k steps earlier, when it was last computed,

        c = mean|R_t - R_{t-k}| / (k * mean|R_{t-k}|)

    decides after how many steps to compute again: ``adacache_rates`` lists pairs "bound:steps", and the first pair
    whose bound exceeds c counts. The number is read when the next step asks, so the host seldom waits for it. The
    paper's distance is not relative to |R|; ours is, so that one table serves models of any scale.
    """

    needs_probe = False
    watches_change = True

    def before(self, step: StepView, config: CacheConfig) -> Verdict:
        verdict = forced(step, config)
        if verdict is None:
            hit = step.run + 1 < step.memory.get("rate", 1.0)
            verdict = Verdict(hit, "hit" if hit else "interval")
        if not verdict.reuse:
            step.memory["computed"], step.memory["gap"] = (
                step.index,
                step.index - step.memory.get("computed", step.index),
            )
        return verdict

    def learn(self, step: StepView, config: CacheConfig, change: float) -> None:
        speed = change / max(step.memory.get("gap", 1.0), 1.0)
        rates = config.adacache_rates
        step.memory["rate"] = next((steps for bound, steps in rates if speed < bound), 1)
