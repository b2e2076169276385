"""``torch.compile(..., backend="dit_cache")`` on copies of a model, and its statistics in the form of a ``Trace``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from parity_support.config import Scope, Trace
from torch import nn

import dit_compile


class Workshop:
    """One compiled copy of a model per structure; everything else about a cache changes without a compilation."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._copies: dict[tuple[int, int, Scope], tuple[nn.Module, nn.Module]] = {}

    def get(self, structure: tuple[int, int, Scope]) -> tuple[nn.Module, nn.Module]:
        """The model and its compiled view."""
        if structure not in self._copies:
            fn, bn, scope = structure
            self._copies[structure] = self.compile({"preset": "cache-dit", "fn": fn, "bn": bn, "scope": scope})
        return self._copies[structure]

    def compile(self, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
        """A copy of its own with these options."""
        model = self._make()
        compiled: Any = torch.compile(model, backend="dit_cache", options={"inner": "eager", **options})
        return model, compiled


def newest_trace(model: nn.Module) -> Trace:
    """What ``dit_compile.stats`` says about the newest generation of ``model``, without outputs."""
    trace = Trace()
    for step in dit_compile.stats(model)[-1].steps:
        place = step.branch, step.region
        cached = trace.cached.setdefault(place, [])
        diffs = trace.diffs.setdefault(place, {})
        assert step.action in ("compute", "reuse")
        assert step.reason
        if step.action == "reuse":
            cached.append(step.index)
        if step.diff is not None:
            diffs[step.index] = step.diff
    return trace


def agree(ours: Trace, theirs: Trace, rel: float) -> None:
    """Asserts the same decisions, and the same diff wherever theirs needed one; ours may measure more of them."""
    assert ours.cached == theirs.cached
    for place, diffs in theirs.diffs.items():
        measured = {step: diff for step, diff in ours.diffs[place].items() if step in diffs}
        assert measured.keys() == diffs.keys(), f"at {place}, diffs were needed on {sorted(diffs)}, got {measured}"
        worst = max((abs(measured[step] - diff) / abs(diff) for step, diff in diffs.items()), default=0.0)
        assert worst <= rel, f"diffs at {place} are off by {worst:.2e}: {measured} instead of {diffs}"
