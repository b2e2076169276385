"""MagCache: reuse while calibrated changes of magnitude have not added up."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, forced, register_policy


@register_policy("magcache")
class MagCache(Policy):
    """MagCache (arXiv:2506.09045).

    With g_t the calibrated ratio of the region's residual norms, |R_t| / |R_{t-1}|, over a run of reused steps

        a = product of g_t,    e = sum of |1 - a|,    reuse while e < residual_diff_threshold

    The schedule is known before the first step, so no data is looked at. ``mag_ratios`` are the g_t from step 1 on;
    other step counts (``num_steps``) take the ratio at the same part of the run. The paper's K is
    ``max_continuous_cached_steps``, its retention ratio is ``warmup_steps``.
    """

    needs_probe = False

    def before(self, step: StepView, config: CacheConfig) -> Verdict:
        verdict = forced(step, config)
        if verdict is None:
            run = range(step.index - step.run, step.index + 1)
            product, error = 1.0, 0.0
            for index in run:
                product *= _ratio(index, config)
                error += abs(1.0 - product)
            hit = error < config.residual_diff_threshold
            verdict = Verdict(hit, "hit" if hit else "threshold")
        return verdict


def _ratio(index: int, config: CacheConfig) -> float:
    ratios = config.mag_ratios or (1.0,)
    steps = config.num_steps or len(ratios) + 1
    place = round((index - 1) * (len(ratios) - 1) / max(steps - 2, 1))
    return ratios[min(max(place, 0), len(ratios) - 1)]
