"""Makes plans for the bundled model and judges them, for benchmarks/tune.py."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from _tune_grid import JUDGES, TUNED_ON, Setup

import dit_compile
from dit_compile.backend import read_options
from dit_compile.config import resolve
from dit_compile.demo import codec
from dit_compile.demo.pipeline import FluxPipeline, generate, load_pipeline
from dit_compile.demo.result import Pictures
from dit_compile.plans import Cut, Plan
from dit_compile.progress import Bars
from dit_compile.tuning.api import split
from dit_compile.tuning.contest import Contest, Result
from dit_compile.tuning.drawing import Artist, Prompt
from dit_compile.tuning.tuner import Tuner

FITTED, _ = split(TUNED_ON, None)
"""Of 16 prompts ``tune`` fits these, and judges by the others."""
SETTINGS: dict[str, Any] = {"inner": "eager"}


class Rig:
    """The model as ``setup`` says, compiled without Inductor; prompts are drawn one by one."""

    def __init__(self, setup: Setup, front: int = 0) -> None:
        self.setup, self._front = setup, front
        self.pipe = _compiled(setup.numbers, setup.size, front)
        self.model = self.pipe.transformer
        self.draws = 0
        self.artist = Artist(self.draw)
        self._contest: Contest | None = None

    def draw(self, prompt: str, seed: int, steps: int | None = None) -> Pictures:
        """Float pictures in [-1, 1]."""
        self.draws += 1
        config = codec.CodecConfig(picture_size=self.setup.size)
        steps = self.setup.steps if steps is None else steps
        return codec.decode_float(generate(self.pipe, [prompt], [seed], steps, self.setup.guidance, config=config))

    def tuner(self, prompts: Sequence[Prompt] = FITTED, snapshots: int = 4) -> Tuner:
        """A tuner with its recordings: what ``tune`` does before it looks at the budget."""
        tuner = Tuner(
            self.artist, prompts, (), cut=Cut(self._front, 0, "chain"), snapshots=snapshots,
            names=[type(self.model).__name__], config=resolve(*read_options(SETTINGS)[0]), bars=Bars(None),
        )  # fmt: skip
        tuner.record()
        return tuner

    def judge(self, plan: Plan, prompts: Sequence[Prompt] = JUDGES) -> Result:
        """Draws ``prompts`` under ``plan``.

        Raises RuntimeError where the plan is not applied.
        """
        contest = self.contest(plan) if prompts is JUDGES else self._new_contest(plan, prompts)
        result = contest.plan(plan)
        if result.cost != result.cost:  # NaN
            raise RuntimeError(f"not applied: {self.why_not(plan)}")
        return result

    def contest(self, plan: Plan) -> Contest:
        """The judges' contest; pictures with every step computed are drawn once."""
        if self._contest is None:
            self._contest = self._new_contest(plan, JUDGES)
        return self._contest

    def _new_contest(self, plan: Plan, prompts: Sequence[Prompt]) -> Contest:
        contest = Contest(self.artist, prompts, plan.parts)
        contest.reference()
        return contest

    def why_not(self, plan: Plan) -> str:
        """Why ``plan`` is not applied here; empty where it is."""
        plans = [one.plan for one in self.artist.draw(JUDGES[0], plan=plan).generations]
        return next((said.partition("not applied: ")[2] for said in plans if "in force" not in said), "")

    @contextmanager
    def effort(self) -> Iterator[dict[str, float]]:
        """Counts draws and processor seconds of what is done within."""
        found: dict[str, float] = {}
        draws, start = self.draws, time.process_time()
        yield found
        found |= {"draws": self.draws - draws, "cpu_seconds": round(time.process_time() - start, 1)}


@functools.lru_cache
def _compiled(numbers: str, size: int, front: int) -> FluxPipeline:
    """A model of its own for each size and cut, which has no graph of another one."""
    pipe = load_pipeline(dtype=torch.bfloat16 if numbers == "bfloat16" else torch.float32)
    if numbers == "int8":
        torchao: Any = importlib.import_module("torchao.quantization")
        torchao.quantize_(pipe.transformer, torchao.Int8DynamicActivationInt8WeightConfig())
    dit_compile.compile(pipe.transformer, **SETTINGS)
    return pipe


def plan_for(tuner: Tuner, share: float) -> Plan:
    """The plan that runs ``share`` of the blocks."""
    return Plan(tuple(tuner.for_cost(share)))


def as_if_made_for(plan: Plan, other: Plan) -> Plan:
    """``plan`` with the conditions of ``other``, so that a run applies it which would refuse it: to measure only."""
    pairs = zip(plan.parts, other.parts, strict=True)
    return Plan(tuple(replace(part, conditions=there.conditions) for part, there in pairs))


def without_corrections(tuner: Tuner) -> None:
    """Computed steps stay as they are in the plans that ``tuner`` makes."""
    for module in tuner.modules:
        fit_with = module.fit

        def fit(*args: Any, fit_with: Any = fit_with) -> Any:
            made = fit_with(*args)
            made.steps = {step: one for step, one in made.steps.items() if not one.corrects}
            return made

        module.fit = functools.partial(fit)  # type: ignore[method-assign]
