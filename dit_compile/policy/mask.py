"""Mask: a digit for every step."""

from __future__ import annotations

from ..config import CacheConfig
from .base import Policy, StepView, Verdict, register_policy
from .mask_presets import mask_digits


@register_policy("mask")
class Mask(Policy):
    """``step_mask`` names the steps to compute: "1101" reuses at the third step only (cache-dit's static step mask).

    A name (slow, medium, fast, ultra) stands for cache-dit's mask of ``num_steps`` digits. Steps behind the end of the
    mask compute. No data is looked at.
    """

    needs_probe = False

    def before(self, step: StepView, config: CacheConfig) -> Verdict:
        mask = mask_digits(config)
        if step.index >= len(mask):
            return Verdict(False, "mask_end")
        return Verdict(True, "hit") if mask[step.index] == "0" else Verdict(False, "mask")
