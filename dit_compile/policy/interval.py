"""Interval: compute every n-th step."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, register_policy


@register_policy("interval")
class Interval(Policy):
    """Fixed schedule of FORA (arXiv:2407.01425) and TaylorSeer (arXiv:2503.06923).

    Step s computes when s < warmup_steps or (s - warmup_steps) mod interval = 0. No data is looked at.
    """

    needs_probe = False

    def before(self, step: StepView, config: CacheConfig) -> Verdict:
        if step.index < config.warmup_steps:
            return Verdict(False, "warmup")
        if (step.index - config.warmup_steps) % config.interval == 0:
            return Verdict(False, "interval")
        return Verdict(True, "hit")
