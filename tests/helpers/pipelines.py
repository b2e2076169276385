"""A real pipeline of diffusers as data: how to build it from tiny random parts, how to call it, and what one run is.

``check_compiled`` runs it uncompiled and compiled and compares. Nothing of the pipeline is replaced but its denoisers,
which are compiled as a user compiles them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import dit_compile
from dit_compile.api import table
from dit_compile.runtime.stats import GenerationStats

MASK = "1101001011010010110100101101"  # a digit per step; behind a 0, never two branches' worth of luck


@dataclass(frozen=True)
class Pipeline:
    """``build()`` makes the pipeline, with the same weights every time; ``run(pipe, seed)`` runs it and returns its
    latents.

    ``calls`` says, for each of ``denoisers`` (experts), how many calls each step of a run has: ((2, 2, 1),) is one
    denoiser and three steps, the last of them without guidance. ``windows`` says the same of further loops of one
    denoiser in a run (the windows of a long video); each loop is a generation.

    ``aside`` tells of the arguments of a call that it is none of a step: it fills a memory of the pipeline's own.

    ``prompt`` names the argument that tells branches apart (None: nothing does), ``dynamo`` are settings of Dynamo that
    the model needs to be cached, ``tolerance`` of outputs is relative to the largest number.
    """

    name: str
    build: Callable[[], Any]
    run: Callable[[Any, int], Tensor]
    calls: Sequence[Sequence[int]]
    denoisers: Sequence[str] = ("transformer",)
    windows: Sequence[Sequence[int]] = ()
    aside: Callable[[dict[str, Any]], bool] = lambda arguments: False
    prompt: str | None = "encoder_hidden_states"
    dynamo: dict[str, Any] = field(default_factory=dict)
    fast: bool = False
    tolerance: float = 1e-5


class Denoiser:
    """A compiled model of a pipeline, and the prompt of each of its calls."""

    def __init__(self, model: torch.nn.Module, calls: Sequence[int], spec: Pipeline, *, in_place: bool) -> None:
        self.model = model
        self.loops = [calls, *spec.windows]  # of one run, and in each of them how many calls each step has
        self.prompts: list[tuple[float, ...]] = []
        if in_place:
            self.compiled: Any = dit_compile.compile(model, inner="eager")
            forward: Any = model._compiled_call_impl
        else:
            self.compiled = torch.compile(model, backend="dit_cache", options={"inner": "eager"})
            forward = self.compiled.forward

        def noting(*args: Any, **kwargs: Any) -> Any:
            if not spec.aside(kwargs):
                given = tree_leaves(kwargs.get(spec.prompt) if spec.prompt else None)
                self.prompts.append(tuple(float(t.double().sum()) for t in given if isinstance(t, Tensor)))
            return forward(*args, **kwargs)

        if in_place:
            model._compiled_call_impl = noting
        else:
            self.compiled.forward = noting

    def generations(self, session: str) -> list[GenerationStats]:
        return [stats for stats in dit_compile.stats(self.model) if stats.session == session]

    def check(self, session: str, runs: int, mask: str | None) -> None:
        self.check_runs(session, [*self.loops] * runs, mask)

    def check_runs(self, session: str, runs: Sequence[Sequence[int]], mask: str | None) -> None:
        """One generation per loop of a run, each with its steps and branches; every branch follows ``mask``, where
        there is one, and has one prompt. ``runs`` has the calls of each step of each loop."""
        generations = self.generations(session)
        assert len(generations) == len(runs), [len(stats.steps) for stats in generations]
        prompts, self.prompts = self.prompts, []
        assert len(prompts) == sum(map(sum, runs))
        for stats, calls in zip(generations, runs, strict=True):
            first = [step for step in stats.steps if step.region == 0]
            mine, prompts = prompts[: len(first)], prompts[len(first) :]
            at = defaultdict(set)
            for step in stats.steps:
                at[step.region, step.index].add(step.branch)
            for region in {step.region for step in stats.steps}:
                found = [len(at[region, index]) for index in range(len(calls))]
                assert found == list(calls), f"calls of each step in region {region}"
            assert len(stats.steps) == sum(map(len, at.values())), "a branch was called twice at one step"
            of_branch = defaultdict(set)
            for step, prompt in zip(first, mine, strict=True):
                of_branch[step.branch].add(prompt)
            assert all(len(each) == 1 for each in of_branch.values()), f"prompts of each branch: {dict(of_branch)}"
            if mask is not None:
                self._check_mask(stats, mask)

    def _check_mask(self, stats: GenerationStats, mask: str) -> None:
        last: dict[tuple[int, int], int] = {}
        for step in stats.steps:
            place = (step.region, step.branch)
            new = last.get(place) != step.index - 1  # its first step, or it has missed one
            wanted = ("compute",) if new or mask[step.index] == "1" else ("reuse", "hit")
            found = (step.action, step.reason)[: len(wanted)]
            assert found == wanted, f"step {step.index} of branch {step.branch}: {step.action} ({step.reason})"
            last[place] = step.index

    def check_memory(self, session: str) -> None:
        """Nothing is held after the end of a run."""
        states = [state for (owner, name), state in table._states.items() if name == session]
        assert all(state.bytes_held() == 0 for state in states)
        assert all(stats.ended and stats.bytes_held > 0 for stats in self.generations(session))


def compile_denoisers(pipe: Any, spec: Pipeline, *, in_place: bool = False) -> list[Denoiser]:
    """With ``dit_compile.compile`` where ``in_place``, else with ``torch.compile``."""
    made = []
    for name, calls in zip(spec.denoisers, spec.calls, strict=True):
        made.append(Denoiser(getattr(pipe, name), calls, spec, in_place=in_place))
        setattr(pipe, name, made[-1].compiled)
    return made


@torch.no_grad()
def check_compiled(
    spec: Pipeline, compiled: Callable[[Any], object] = lambda pipe: None, *, in_place: bool = False
) -> None:
    """Raises AssertionError where the compiled pipeline differs from the uncompiled one by more than its reused steps,
    or where a call is told wrong. ``compiled(pipe)`` is called before its first run."""
    with torch._dynamo.config.patch({} if in_place else spec.dynamo):
        pipe = spec.build()
        pipe.set_progress_bar_config(disable=True)
        plain = [spec.run(pipe, seed) for seed in (0, 1)]
        denoisers = compile_denoisers(pipe, spec, in_place=in_place)
        compiled(pipe)
        if in_place:  # a call may run uncompiled, to fill what the model makes once
            with dit_compile.session("first"):
                spec.run(pipe, 0)
            for denoiser in denoisers:
                denoiser.prompts.clear()

        with dit_compile.session("exact", residual_diff_threshold=0.0):
            exact = [spec.run(pipe, seed) for seed in (0, 1)]
        for got, wanted in zip(exact, plain, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=spec.tolerance * float(wanted.abs().max()))
        for denoiser in denoisers:
            denoiser.check("exact", runs=2, mask=None)

        with dit_compile.session("mask", policy="mask", step_mask=MASK):
            masked = [spec.run(pipe, 0) for _ in range(2)]
            assert torch.equal(*masked), "two runs of one seed differ"
            difference = float((masked[0] - plain[0]).abs().max() / plain[0].abs().max())
            assert difference > spec.tolerance, "reused steps are not seen in the output"
            for denoiser in denoisers:
                denoiser.check("mask", runs=2, mask=MASK)
                denoiser.check_memory("mask")
