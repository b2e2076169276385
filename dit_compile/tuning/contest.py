"""What a plan is compared with, on prompts that had no part in its fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from ..api import graphs
from ..plans import Forecast, Part, Plan
from ..runtime.stats import GenerationStats, share_run
from .drawing import Artist, Drawn, Prompt
from .pictures import data_range, psnr

T = TypeVar("T")
BEST_DB = 100.0  # of pictures that are equal, in means
AS_CHEAP = 1.1  # times the cost of the plan
PRESETS = ("quality", "balanced", "fast", "ultra")


@dataclass(frozen=True)
class Result:
    """One way to draw the prompts. ``cost`` is in full steps, ``psnr`` in dB for each prompt, ``seconds`` those of the
    fastest draw (other processes add to the others), ``bytes_held`` the most that snapshots took. ``problem`` says why
    a plan was not in force."""

    name: str
    cost: float
    psnr: tuple[float, ...]
    seconds: float | None = None
    bytes_held: int = 0
    problem: str = ""

    @property
    def mean(self) -> float:
        return fmean(min(value, BEST_DB) for value in self.psnr)

    @property
    def worst(self) -> float:
        return min(min(self.psnr), BEST_DB)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "cost": round(self.cost, 3),
            "psnr": round(self.mean, 2),
            "worst_psnr": round(self.worst, 2),
            "psnr_of_each": [round(min(value, BEST_DB), 2) for value in self.psnr],
            "seconds": None if self.seconds is None else round(self.seconds, 4),
            "bytes_held": self.bytes_held,
            **({"problem": self.problem} if self.problem else {}),
        }


class Contest:
    """Draws ``prompts`` in several ways and compares the pictures with the uncached ones."""

    def __init__(self, artist: Artist, prompts: Sequence[Prompt], parts: Sequence[Part]) -> None:
        self._artist, self._prompts = artist, prompts
        self._steps = sum(part.conditions.steps for part in parts)
        self._references: list[Drawn] = []

    @property
    def most_draws(self) -> int:
        """Draws for all that is compared below, with two presets."""
        return 6 * len(self._prompts) + len(PRESETS) - 2

    def reference(self) -> Result:
        """Every step computed."""
        self._references = [self._artist.draw(prompt, enabled=False) for prompt in self._prompts]
        return self._result("every step computed", self._references, float(self._steps))

    def plan(self, plan: Plan, name: str = "plan") -> Result:
        """Under ``plan``."""
        drawn = [self._artist.draw(prompt, plan=plan) for prompt in self._prompts]
        problems = [one.plan for draw in drawn for one in draw.generations if "in force" not in one.plan]
        return replace(self._result(name, drawn, plan.cost), problem=problems[0] if problems else "")

    def reused(self, plan: Plan) -> Result:
        """The steps of ``plan``, but what a region added at the last computed step is repeated."""
        return self.plan(Plan(tuple(map(_repeating, plan.parts))), "the same steps, reuse")

    def fewer_steps(self, count: int) -> Result:
        """``count`` steps in the place of all, every one computed."""
        drawn = [self._artist.draw(prompt, steps=count, enabled=False) for prompt in self._prompts]
        return self._result("fewer steps", drawn, float(count))

    def presets(self, parts: Sequence[Part], cost: float) -> list[Result]:
        """The presets of the guard whose costs lie around ``cost``; the first prompt tells what each costs."""
        drawn = {name: [self._artist.draw(self._prompts[0], preset=name)] for name in PRESETS}
        costs = {name: self._cost(found, parts) for name, found in drawn.items()}
        results = []
        for name in nearest_presets(costs, cost):
            found = drawn[name]
            found += [self._artist.draw(prompt, preset=name) for prompt in self._prompts[1:]]
            results.append(self._result(name, found, self._cost(found, parts)))
        return results

    def _cost(self, drawn: Sequence[Drawn], parts: Sequence[Part]) -> float:
        """Mean blocks executed, in full steps; the guard's region skips what the plan's does, but for its front."""
        report = next(one for one in reversed(graphs()) if one.regions)
        skipped = [region.skipped for region in report.regions]
        return fmean(cost_of(one.generations, skipped, parts[0].blocks, self._steps) for one in drawn)

    def _result(self, name: str, drawn: Sequence[Drawn], cost: float) -> Result:
        truth = [one.pixels for one in self._references]
        full = data_range(truth)
        values = tuple(psnr(true, one.pixels, full) for true, one in zip(truth, drawn, strict=True))
        held = max((one.bytes_held for draw in drawn for one in draw.generations), default=0)
        return Result(name, cost, values, min(one.seconds for one in drawn), held)


def _repeating(part: Part) -> Part:
    def repeat(forecast: Forecast) -> Forecast:
        latest = (0.0,) * (len(forecast.sources) - 1) + (1.0,)
        weights = tuple(tuple(tuple(latest for _ in region) for region in branch) for branch in forecast.weights)
        return Forecast(forecast.sources, weights)

    return replace(part, forecasts={step: repeat(one) for step, one in part.forecasts.items()}, corrections={})


def cost_of(generations: Iterable[GenerationStats], skipped: Sequence[int], blocks: int, steps: int) -> float:
    """Blocks executed, in full steps of ``steps``, by the share of decisions to reuse."""
    return steps * share_run([record for one in generations for record in one.steps], skipped, blocks)


def at_equal_cost(results: Sequence[Result], cost: float, name: str) -> Result | None:
    """The figures of ``results`` at ``cost``, on the straight line between the two nearest, for each prompt; those of
    the dearest one where all are cheaper; None where none is as cheap, within ``AS_CHEAP``."""
    below, above = _around(results, [one.cost for one in results], cost)
    if below is None and above is not None and above.cost <= cost * AS_CHEAP:
        below = above
    if below is None:
        return None
    if above is None or below is above:
        return replace(below, name=f"{name} ({below.name})")
    share = (cost - below.cost) / (above.cost - below.cost) if above.cost > below.cost else 0.0
    values = tuple(
        min(one, BEST_DB) * (1 - share) + min(other, BEST_DB) * share
        for one, other in zip(below.psnr, above.psnr, strict=True)
    )
    seconds = None
    if below.seconds is not None and above.seconds is not None:
        seconds = below.seconds * (1 - share) + above.seconds * share
    held = max(below.bytes_held, above.bytes_held)
    return Result(f"{name} ({below.name} to {above.name})", cost, values, seconds, held)


def nearest_presets(costs: Mapping[str, float], cost: float) -> list[str]:
    """The presets whose ``costs`` lie around ``cost``: two, or the nearest one where ``cost`` lies outside."""
    below, above = _around(list(costs), list(costs.values()), cost)
    return list(dict.fromkeys(name for name in (below, above) if name is not None))


def _around(found: Sequence[T], costs: Sequence[float], cost: float) -> tuple[T | None, T | None]:
    """Of ``found``, which have ``costs``, the dearest that costs no more than ``cost``, and the cheapest that costs no
    less."""
    places = range(len(found))
    below = max((i for i in places if costs[i] <= cost), key=costs.__getitem__, default=None)
    above = min((i for i in places if costs[i] >= cost), key=costs.__getitem__, default=None)
    return None if below is None else found[below], None if above is None else found[above]


def verdict(plan: Result, rivals: Sequence[Result]) -> tuple[bool, str]:
    """Whether ``plan`` is recommended, and why: on average it must be better than each rival, and its worst picture not
    worse. The first rival is the one that the reason of a recommended plan names."""
    if plan.problem:
        return False, f"the plan was not in force in runs of its own ({plan.problem})"
    for one in rivals:
        if plan.mean <= one.mean:
            return False, f"{one.name} has {one.mean:.1f} dB on average, the plan {plan.mean:.1f} dB"
        if plan.worst < one.worst:
            return False, f"{one.name} has {one.worst:.1f} dB in the worst picture, the plan {plan.worst:.1f} dB"
    first = rivals[0]
    cost = f" at {first.cost:.1f} steps" if abs(plan.cost - first.cost) > 0.05 else ""
    better, worst = plan.mean - first.mean, plan.worst - first.worst
    return True, f"{better:.1f} dB better on average than {first.name}{cost}, {worst:.1f} dB in the worst picture"
