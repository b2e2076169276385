"""What a guard policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..config import CacheConfig
from ..registry import Registry


@dataclass(frozen=True)
class StepView:
    """What a policy sees of one region in one branch at one step.

    ``index`` counts the steps of the generation from 0. ``cached`` counts the steps reused so far, ``run`` those reused
    in a row just before this one.
    """

    index: int
    cached: int
    run: int


@dataclass(frozen=True)
class Verdict:
    """``reuse`` or compute, and the reason code that statistics show."""

    reuse: bool
    reason: str


class Policy(ABC):
    """Decides between computing and reusing a region.

    ``before`` sees no data. It returns a verdict, or None when it wants to know how much the probe has changed; only
    then does the host wait for the device, and ``after`` gets that number. A policy whose ``before`` always answers
    sets ``needs_probe = False``, so that no probe is measured or kept. Values come from the configuration at every
    call, never from the constructor: they may change while a generation runs.

    Verdicts to reuse are overruled by the runtime where there is nothing to reuse (``no_snapshot``), or where shapes
    (``shape_changed``) or the difference (``non_finite``) forbid it.
    """

    needs_probe: ClassVar[bool] = True

    @abstractmethod
    def before(self, step: StepView, config: CacheConfig) -> Verdict | None:
        """The verdict without looking at data, or None."""

    def after(self, step: StepView, config: CacheConfig, diff: float) -> Verdict:
        """``diff`` is finite: mean|probe - last computed probe| / mean|last computed probe|."""
        raise TypeError(f"{type(self).__name__}.before asked for the difference (it returned None), but has no after()")


POLICIES: Registry[Policy] = Registry("policy")
register_policy = POLICIES.register
