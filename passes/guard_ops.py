"""The two operations that the passes insert.

They stand in the top-level graph as ordinary calls and delegate to the ``step`` that the runtime hands in at every
call, so the graph holds no state, no threshold and no decision of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Decision(Protocol):
    """What ``guard`` returns: whether the region runs, and what its result is."""

    def run(
        self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Sequence[Tensor | None]
    ) -> Sequence[Tensor]: ...


class Step(Protocol):
    """One call of the model, as the runtime sees it."""

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> Decision: ...


def guard(step: Step, region: int, entry: Tensor | None, value: Tensor) -> Decision:
    """Compares ``value - entry`` with the last computed step and decides whether to run the region."""
    return step.guard(region, entry, value)


def compute_or_forecast(
    decision: Decision,
    region: Callable[..., Sequence[Tensor]],
    operands: Sequence[Any],
    bases: Sequence[Tensor | None],
) -> Sequence[Tensor]:
    """Runs ``region(*operands)`` and remembers its effect on ``bases``, or forecasts that effect."""
    return decision.run(region, operands, bases)
