"""Rows of a batch and what is decided about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..policy import Verdict
from .rows import Rows


@dataclass(eq=False)
class Group:
    """Rows of the batch that decide together at one region.

    ``value`` and ``entry`` are what the guard compares, ``residual`` their difference where it was formed.
    """

    region: int
    rows: Rows
    verdict: Verdict | None
    number: int = 0
    key: tuple[object, ...] | None = None
    value: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    entry: Tensor | None = field(default=None, repr=False)
    residual: Tensor | None = field(default=None, repr=False)
    diff: float | None = None
    weights: list[float] = field(default_factory=list)  # of the snapshots, where the verdict is to reuse

    @property
    def reuse(self) -> bool:
        return self.verdict is not None and self.verdict.reuse
