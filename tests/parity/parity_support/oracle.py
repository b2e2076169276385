"""The cache, written as plainly as possible: an eager reference of DBCache over FLUX's module lists.

Nothing here is compiled, fused or clever, and nothing is shared with ``dit_compile``. The forecasts keep the whole
history of residuals and apply their textbook recurrences to it, so that they are a check on forecast weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from parity_support.config import Knobs, Place, StreakRule, Trace
from torch import Tensor, nn

if TYPE_CHECKING:
    from parity_support.cases import Case
    from parity_support.generation import Studio

History = list[tuple[int, Tensor]]  # (step, residual of the region at that step), oldest first


def reuse(history: History, step: int, order: int) -> Tensor:
    return history[-1][1]


def taylorseer(history: History, step: int, order: int) -> Tensor:
    """cache-dit's TaylorSeer: every difference is divided by the newest gap, and none is taken before step 3."""
    ladder: list[Tensor] = []
    last = -1
    for when, value in history:
        fresh = [value]
        for previous in ladder[:order] if when > 2 else []:
            fresh.append((fresh[-1] - previous) / (when - last))
        ladder, last = fresh, when
    terms = [(1 / math.factorial(i)) * d * ((step - last) ** i) for i, d in enumerate(ladder)]
    return sum(terms[1:], start=terms[0])


def newton(history: History, step: int, order: int) -> Tensor:
    """The polynomial through the newest ``order + 1`` residuals, by divided differences on the real step numbers."""
    newest = history[: -(order + 2) : -1]
    nodes, column = [when for when, _ in newest], [value for _, value in newest]
    result, factor = column[0], 1.0
    for level in range(1, len(nodes)):
        column = [(b - a) / (nodes[i + level] - nodes[i]) for i, (a, b) in enumerate(pairwise(column))]
        factor *= step - nodes[level - 1]
        result = result + factor * column[0]
    return result


FORECASTS: dict[str, Callable[[History, int, int], Tensor]] = {
    "reuse": reuse,
    "taylorseer": taylorseer,
    "newton": newton,
}


@dataclass
class Memory:
    """What one region remembers of one branch."""

    probe: Tensor | None = None
    image: History = field(default_factory=list)
    text: History = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    diffs: dict[int, float] = field(default_factory=dict)
    run: int = 0  # how many steps in a row were hits, by the streak rule in force


class OracleModel(nn.Module):
    """A FluxTransformer2DModel with the cache of ``knobs`` around its blocks; it has the transformer's call signature.

    ``branches`` calls belong to each step, always in the same order. ``streak`` chooses how consecutive hits are
    counted: as cache-dit 1.5.3 does since its #1114 (and ``dit_cache``), or with the quirk of 1.0.14.
    """

    def __init__(self, transformer: nn.Module, knobs: Knobs, branches: int = 1, streak: StreakRule = "1.5.3") -> None:
        super().__init__()
        self.transformer, self.knobs, self.branches, self.streak = transformer, knobs, branches, streak
        self.reset()

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__["_modules"]
        return modules[name] if name in modules else getattr(modules["transformer"], name)

    def reset(self) -> None:
        self.calls = 0
        self.memories: dict[Place, Memory] = {}

    def trace(self) -> Trace:
        cached = {place: list(memory.cached) for place, memory in self.memories.items()}
        return Trace(cached, {place: dict(memory.diffs) for place, memory in self.memories.items()})

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, object] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        assert not return_dict
        assert not joint_attention_kwargs
        model: Any = self.transformer
        image, text = model.x_embedder(hidden_states), model.context_embedder(encoder_hidden_states)
        clocks = [timestep.to(image.dtype) * 1000] + ([] if guidance is None else [guidance.to(image.dtype) * 1000])
        temb = model.time_text_embed(*clocks, pooled_projections)
        rotary = model.pos_embed(torch.cat((txt_ids, img_ids), dim=0))

        def run(blocks: Iterable[nn.Module], image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            for block in blocks:
                text, image = block(image, text, temb, rotary)
            return image, text

        doubles, singles = list(model.transformer_blocks), list(model.single_transformer_blocks)
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        for region, blocks in enumerate([doubles + singles] if self.knobs.scope == "chain" else [doubles, singles]):
            memory = self.memories.setdefault((branch, region), Memory())
            image, text = self._region(memory, step, blocks, run, image, text)
        return (model.proj_out(model.norm_out(image, temb)),)

    def _region(
        self, memory: Memory, step: int, blocks: list[nn.Module], run: Callable, image: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        knobs, end = self.knobs, len(blocks) - self.knobs.bn
        entry = image
        image, text = run(blocks[: knobs.fn], image, text)
        probe = image - entry
        if self._decide(memory, step, probe):
            self._count_hit(memory, step)
            forecast = FORECASTS[knobs.forecast]
            image = forecast(memory.image, step, knobs.taylor_order) + image
            text = forecast(memory.text, step, knobs.taylor_order) + text
        else:
            memory.probe = probe
            before = image, text
            image, text = run(blocks[knobs.fn : end], image, text)
            memory.image.append((step, image - before[0]))
            memory.text.append((step, text - before[1]))
        return run(blocks[end:], image, text)

    def _decide(self, memory: Memory, step: int, probe: Tensor) -> bool:
        """True when the region may be skipped."""
        knobs, most, streak = self.knobs, self.knobs.max_cached_steps, self.knobs.max_continuous_cached_steps
        if self.streak == "1.5.3" and (not memory.cached or memory.cached[-1] != step - 1):
            memory.run = 0
        if step in range(0, knobs.warmup_steps, knobs.warmup_interval):
            return False
        if 0 <= most <= len(memory.cached):
            return False
        if 0 <= streak <= memory.run:
            if self.streak == "1.0.14":
                memory.run = 0
            return False
        if knobs.residual_diff_threshold <= 0 or memory.probe is None:
            return False
        diff = ((memory.probe - probe).abs().mean() / memory.probe.abs().mean()).item()
        memory.diffs[step] = diff
        return diff < knobs.residual_diff_threshold

    def _count_hit(self, memory: Memory, step: int) -> None:
        if self.streak == "1.5.3" or not memory.cached:
            memory.run += 1
        elif step - memory.cached[-1] == 1:
            memory.run += 2 if memory.run == 0 else 1
        memory.cached.append(step)


def oracle_trace(studio: Studio, case: Case, streak: StreakRule) -> Trace:
    """The oracle's picture of ``case``."""
    oracle = OracleModel(studio.transformer(), case.knobs, case.branches, streak)
    drawn = studio.draw(studio.pipeline(oracle), case.branches)
    trace = oracle.trace()
    return Trace(trace.cached, trace.diffs, drawn.outputs, drawn.latents)
