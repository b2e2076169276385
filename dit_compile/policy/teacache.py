"""TeaCache: reuse while the rescaled changes of the modulated input have not added up."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, accumulated, forced, register_policy


@register_policy("teacache")
class TeaCache(Policy):
    """TeaCache (arXiv:2411.19108).

    With m_t the input of the first block after its modulation (``teacache_tap=time``: the time embedding), reuse while

        sum_t poly( mean|m_t - m_{t-1}| / mean|m_{t-1}| )  <  residual_diff_threshold

    The reference is the previous step, not the last computed one; the sum begins anew at a computed step. ``poly`` is
    ``teacache_polynomial``, which the authors fit for each model so that it predicts the change of the output; by
    default nothing is rescaled. A fit may fall below zero; a step then adds nothing.
    """

    reference = "previous"

    def tap(self, config: CacheConfig) -> str:
        return config.teacache_tap

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        return forced(step, config)

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        total = accumulated(step, max(polynomial(config.teacache_polynomial, diff), 0.0))
        hit = total < config.residual_diff_threshold
        return Verdict(hit, "hit" if hit else "threshold")


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """The polynomial with these coefficients, highest power first, at ``x``."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
