"""Delta-DiT: skip the rear blocks early and the front blocks late."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, forced, register_policy


@register_policy("delta_dit")
class DeltaDiT(Policy):
    """Delta-DiT (arXiv:2406.01125).

    Front blocks draw the outline, rear blocks the details. Every ``interval``-th step computes everything; of the
    others, those before step ``delta_boundary`` reuse the effect of the rear half, the later ones that of the front
    half. Needs ``scope=halves``, which makes two regions of the chain; each half keeps F computed blocks.
    """

    needs_probe = False

    def before(self, step: StepView, config: CacheConfig) -> Verdict:
        verdict = forced(step, config)
        if verdict is not None:
            return verdict
        if (step.index - config.warmup_steps) % config.interval == 0:
            return Verdict(False, "interval")
        skipped = min(step.regions - 1, 1) if step.index < config.delta_boundary else 0
        hit = step.region % 2 == skipped  # a chain that runs twice has four halves
        return Verdict(hit, "hit" if hit else "other_half")
