"""What a guard policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from ..config import CacheConfig
from ..registry import Registry
from .mask_presets import mask_digits


@dataclass(slots=True)  # not frozen: that would make seven calls of each of a thousand objects per generation
class StepView:
    """What a policy sees of one region in one branch at one step.

    ``index`` counts the steps of the generation from 0. ``cached`` counts the steps reused so far, ``run`` those reused
    in a row just before this one. ``region`` is the number of the region among ``regions``. ``memory`` is the policy's
    own: numbers that it wants to keep until the generation ends, for this region and branch. ``since`` counts the steps
    since the last computed one. ``expected`` is the difference that a decision without waiting goes by: what the last
    step has measured, carried on to this one (None: not known; of a ``lagged`` policy, as if it grew evenly). ``mean``
    is the mean of what it has measured in all regions.
    """

    index: int
    cached: int
    run: int
    region: int = 0
    regions: int = 1
    memory: dict[str, float] = field(default_factory=dict)
    since: int = 1
    expected: float | None = None
    mean: float = 0.0


class Verdict(NamedTuple):
    """``reuse`` or compute, and the reason code that statistics show."""

    reuse: bool
    reason: str


class Policy(ABC):
    """Decides between computing and reusing a region.

    ``before`` sees no data. It returns a verdict, or None when it wants to know how much the probe has changed; only
    then does the host wait for the device, unless decision=lagged, and ``after`` gets that number. A policy whose
    ``before`` always answers sets ``needs_probe = False``, so that no probe is measured or kept. Values come from the
    configuration at every call, never from the constructor: they may change while a generation runs.

    Verdicts to reuse are overruled by the runtime where there is nothing to reuse (``no_snapshot``), or where shapes
    (``shape_changed``) or the difference (``non_finite``) forbid it.
    """

    needs_probe: ClassVar[bool] = True
    reference: ClassVar[str] = "computed"  # what a tap is compared with: the last "computed" or the "previous" step
    watches_change: ClassVar[bool] = False  # whether ``learn`` is wanted
    ends_history: ClassVar[bool] = False  # whether a difference out of family ends history (Slots.is_jump)
    lagged: ClassVar[bool] = False  # whether ``before`` decides by ``expected``, also with decision=exact

    def tap(self, config: CacheConfig) -> str:
        """What is measured, chosen when the graph is compiled.

        ``residual``: the effect of the front blocks on the main stream. ``hidden``: that stream itself.
        ``modulated``: what enters the first block's first projection of it. ``time``: the time embedding.
        ``input``: the latents as the model takes them.
        """
        return "residual"

    def measures(self, config: CacheConfig) -> bool:
        """Whether a step is reused only when something that was measured at this step allows it. Where it is not, the
        runtime itself compares latents and prompts with those before, unless it is told when a generation ends."""
        return self.needs_probe and not self.lagged

    def sees_jumps(self, config: CacheConfig) -> bool:
        """Whether a difference that is out of family ends history."""
        return self.ends_history and self.measures(config)

    @abstractmethod
    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        """The verdict without looking at data, or None.

        A ``lagged`` policy goes by ``step.expected`` and ``step.mean``, read for all regions in one transfer.
        """

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        """``diff`` is finite: mean|tap - reference| / mean|reference|, with decision=lagged the one expected."""
        raise TypeError(f"{type(self).__name__}.before asked for the difference (it returned None), but has no after()")

    def learn(self, step: StepView, config: CacheConfig, change: float) -> None:  # noqa: B027 - most have no use for it
        """Called once between a computed step and the next decision. ``change`` says by how much the effect of the
        region has changed from the computed step before: mean|new - old| / mean|old|, finite."""


def forced(step: StepView, config: CacheConfig) -> Verdict | None:
    """The steps that settings force to be computed, whatever is measured: warm-up, step mask, limits of reuse."""
    if step.index < config.warmup_steps and step.index % config.warmup_interval == 0:
        return Verdict(False, "warmup")
    if mask_digits(config)[step.index : step.index + 1] == "1":
        return Verdict(False, "mask")
    if 0 <= config.max_cached_steps <= step.cached:
        return Verdict(False, "cached_limit")
    if 0 <= config.max_continuous_cached_steps <= step.run:
        return Verdict(False, "consecutive_limit")
    return None


def accumulated(step: StepView, change: float) -> float:
    """The sum of ``change`` and what earlier calls have added since the last computed step. One sum per policy."""
    total = change + (step.memory.get("sum", 0.0) if step.run else 0.0)
    step.memory["sum"] = total
    return total


POLICIES: Registry[Policy] = Registry("policy")
register_policy = POLICIES.register
