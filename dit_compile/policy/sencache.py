"""SenCache: reuse while the change of the inputs, times how sensitive the model is to them, is small."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, forced, register_policy


@register_policy("sencache")
class SenCache(Policy):
    """SenCache (arXiv:2602.24208; github.com/vita-epfl/SenCache).

    With z the latents, t the time, and c the last computed step, reuse while

        J_z * |z - z_c| + J_t * |t - t_c|  <  residual_diff_threshold

    J_z and J_t are the sensitivities at step c: how much the effect of the region changes with one of them while the
    other stays. ``sencache_sensitivities`` lists a pair J_z:J_t for each step from 0 on, measured before; other step
    counts (``num_steps``) take the pair at the same part of the run. The paper's K is ``max_continuous_cached_steps``.

    The paper takes Euclidean norms of the whole output and the model's own time. Here changes are relative, of the
    latents mean|z - z_c| / mean|z_c|, of the effect likewise, and time runs from 0 to 1 over the steps of a generation.
    The authors' two thresholds, one for the first fifth of the steps, are one.
    """

    def tap(self, config: CacheConfig) -> str:
        return "input"

    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        return forced(step, config)

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        table = config.sencache_sensitivities or ()
        steps = config.num_steps or len(table)
        place = round((step.index - step.since) * (len(table) - 1) / max(steps - 1, 1))
        of_latents, of_time = table[min(place, len(table) - 1)]
        hit = of_latents * diff + of_time * step.since / steps < config.residual_diff_threshold
        return Verdict(hit, "hit" if hit else "threshold")
