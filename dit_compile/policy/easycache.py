"""EasyCache: reuse while the change of the latents, times how the model transforms changes, has not added up."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, accumulated, forced, register_policy


@register_policy("easycache")
class EasyCache(Policy):
    """EasyCache (arXiv:2507.02860).

    The paper learns at computed steps how strongly the model answers to a change of its input x, k = |dv| / |dx|, and
    on the others predicts the change of the output v from that of the input:

        sum_t k * |x_t - x_{t-1}| / |v|  <  residual_diff_threshold

    Here v is the region's residual, and both changes are relative: k = (|dv| / |v|) / (|dx| / |x|), where dv and dx
    span the steps between two computed ones.
    """

    reference = "previous"
    watches_change = True

    def tap(self, config: CacheConfig) -> str:
        return "input"

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        return None  # also in the warm-up: the latents' way since the last computed step is what counts

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        memory = step.memory
        moved = accumulated(step, diff)  # of the input
        verdict = forced(step, config)
        if verdict is None and "rate" not in memory:
            verdict = Verdict(False, "no_snapshot")
        if verdict is None:
            hit = memory["rate"] * moved < config.residual_diff_threshold
            verdict = Verdict(hit, "hit" if hit else "threshold")
        if not verdict.reuse:
            memory["span"] = moved
        return verdict

    def learn(self, step: StepView, config: CacheConfig, change: float) -> None:
        span = step.memory.pop("span", 0.0)
        if span > 0:
            step.memory["rate"] = change / span
