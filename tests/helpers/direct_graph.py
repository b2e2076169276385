"""A cached graph without Dynamo: plain functions on real tensors below the runtime, for tests of thousands of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_compile.config import CacheConfig, parse_layer
from dit_compile.passes.guard_ops import compute_or_forecast, guard
from dit_compile.plans import Cut
from dit_compile.runtime.cached_graph import CachedGraph
from dit_compile.runtime.code import ClockPlaces, Code, CutCode
from dit_compile.runtime.table import SideTable

WEIGHT = torch.tensor(0.7)


def front(x: Tensor, t: Tensor) -> Tensor:
    return x + torch.tanh(x + t.view(-1, 1, 1) / 5000)


def region(h: Tensor, prompt: Tensor) -> Sequence[Tensor]:
    return (h + torch.sin(2 * h + prompt.mean(1, keepdim=True)) * WEIGHT,)


def tail(h: Tensor) -> Tensor:
    return 0.5 * h


def _forward(step: Any, weight: Tensor, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
    h = front(x, t)
    decision = guard(step, 0, x, h)
    (h,) = compute_or_forecast(decision, region, [h, prompt], [h])
    return tail(h)


class DirectGraph:
    """``graph(x, t, prompt)``, as a compiled model is called. Sessions are those of ``dit_compile.session``, but for
    ``close()``, which knows the package's own table only: ``forget`` stands for it."""

    def __init__(self, **options: Any) -> None:
        self.table = SideTable(on_end=lambda stats: None)
        cut = CutCode(_forward, Cut(1, 0, "chain"), "residual", ("no rows",), (0,))
        code = Code((cut,), ClockPlaces((0,), (1,), 2, (3,)), "direct")
        overrides: dict[str, Any] = {}  # one object, as in the package: a new one has all settings resolved again
        self._graph = CachedGraph(code, [parse_layer(options, where="option")], self.table, lambda: overrides)

    def __call__(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self._graph(WEIGHT, x, t, prompt)
        return result

    def forget(self, session: str | None = None) -> None:
        """Ends one session, or all."""
        self.table.reset(lambda owner, name: session in (None, name))


class Oracle:
    """The same for one generation, told which step and branch a call is of: dbcache, and ``newton`` of order 1."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._config = CacheConfig(**options)
        self._branches: dict[object, _Branch] = {}
        self.reused = 0

    def __call__(self, step: int, branch: object, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        mine = self._branches.setdefault(branch, _Branch())
        if mine.last < step - 1:
            mine.ring = []  # it has missed a step
        mine.last = step
        h = front(x, t)
        probe = h - x
        if self._may_reuse(step, mine, probe):
            mine.cached, mine.run, self.reused = mine.cached + 1, mine.run + 1, self.reused + 1
            change = mine.ring[-1][1]
            if len(mine.ring) == 2:
                (older, before), (newer, change) = mine.ring
                change = change + (change - before) * ((step - newer) / (newer - older))
            return tail(h + change)
        (out,) = region(h, prompt)
        mine.run, mine.probe = 0, probe
        mine.ring = [*mine.ring, (step, out - h)][-2:]
        return tail(out)

    def _may_reuse(self, step: int, mine: _Branch, probe: Tensor) -> bool:
        config = self._config
        limits = [
            (config.max_cached_steps, mine.cached),
            (config.max_continuous_cached_steps, mine.run),
        ]
        if not mine.ring or step < config.warmup_steps or any(0 <= most <= count for most, count in limits):
            return False
        assert mine.probe is not None
        diff = (mine.probe - probe).abs().mean() / mine.probe.abs().mean()
        return bool(diff < config.residual_diff_threshold)


class _Branch:
    def __init__(self) -> None:
        self.last = -1
        self.ring: list[tuple[int, Tensor]] = []
        self.probe: Tensor | None = None
        self.cached = 0
        self.run = 0
