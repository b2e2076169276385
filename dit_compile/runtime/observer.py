"""Who makes a plan looks at the calls of a model, and says how each is carried out."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..plans import Cut
from .code import CutCode
from .region import CallFacts
from .weights import Owner


class ObservedCall(NamedTuple):
    """One call of a graph with ``structure``, whose results are those of ``run(step, args)`` for any ``step``
    (passes/guard_ops.py). ``moving`` are the places of the latents among ``args``, ``code`` is the cut that runs,
    ``weights`` gives their digest."""

    facts: CallFacts
    code: CutCode
    structure: str
    owner: Owner
    weights: Callable[[], str]
    run: Callable[[object, Sequence[Any]], Any]
    args: Sequence[Any]
    moving: tuple[int, ...]


class Observer(Protocol):
    """``cut`` is where graphs are to be cut that are compiled meanwhile."""

    cut: Cut

    def call(self, call: ObservedCall) -> Any:
        """The results of the call."""


observing: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("dit_cache_observing", default=None)
