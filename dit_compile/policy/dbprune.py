"""DBPrune: skip single blocks whose input has changed little since they were last computed."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, forced, register_policy


@register_policy("dbprune")
class DBPrune(Policy):
    """Dynamic block pruning after cache-dit (github.com/vipshop/cache-dit), decided a step ahead.

    Every block between the first F and the last B is a region of its own (``scope=block``). With x_i its input and p_i
    its input when it was last computed, cache-dit skips block i where

        d_i = mean|p_i - x_i| / mean|p_i|  <  residual_diff_threshold

    which makes the host wait once per block, since x_i depends on what was decided for the blocks before. Here all d_i
    of a step are read in one transfer at the next step, and each is carried forward to it as if it grew evenly: d_i,
    measured over ``span`` steps, becomes d_i * since / span, ``since`` steps after the block was computed.

    Warm-up and limits of reuse count for each block; ``keep_blocks`` always run. With ``prune_relax`` r > 0 the
    threshold rises to r * mean(d), where that lies between it and ``prune_relax_limit`` (cache-dit's dynamic
    threshold takes the mean of the first five blocks; here it is that of all).
    """

    lagged = True

    def tap(self, config: CacheConfig) -> str:
        return "hidden"

    def before(self, step: StepView, config: CacheConfig) -> Verdict:
        verdict = forced(step, config)
        if verdict is not None:
            return verdict
        if config.fn + step.region in (config.keep_blocks or ()):
            return Verdict(False, "kept")
        if config.residual_diff_threshold <= 0:
            return Verdict(False, "threshold_off")
        if step.expected is None:
            return Verdict(False, "not_measured")
        hit = step.expected < _threshold(config, step.mean)
        return Verdict(hit, "hit" if hit else "threshold")


def _threshold(config: CacheConfig, mean: float) -> float:
    threshold = config.residual_diff_threshold
    relaxed = config.prune_relax * mean
    limit = config.prune_relax_limit if config.prune_relax_limit >= 0 else 2 * threshold
    return max(relaxed, threshold) if relaxed < limit else threshold
