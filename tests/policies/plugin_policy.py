"""A policy of somebody who uses dit_cache; test_plugin.py names it in the environment."""

from dit_compile.config import CacheConfig
from dit_compile.policy import Policy, StepView, Verdict, register_policy


@register_policy("calm_thirds")
class CalmThirds(Policy):
    """Every third step computes, and so does any step at which the probe has changed by the threshold."""

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        return Verdict(False, "third") if step.index % 3 == 0 else None

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        calm = diff < config.residual_diff_threshold
        return Verdict(calm, "calm" if calm else "moving")
