"""Fits the weights of a plan in sequence, on runs that are cached with them.

A cached run of the calibration prompts is walked beside the uncached one. At each step t that is forecast the weights
are solved for so that the solver's next latents are those of the uncached run:

    sum_b a_t^b v_t^b(w) = x_{t+1} - (what the rule adds besides)

Here x_{t+1} are latents of the uncached run, all else is of the cached run, so errors of earlier steps are taken back.
The outputs v are linearised in the weights by finite differences: the front, the forecast and the tail run once more
for each free weight, which is cheap beside the region. In each stream the weights keep the sum 1, and a small ridge
pulls towards the weights of FoCa, the prior. Computed steps are corrected in the same way: what the region has added
keeps the weight 1 less the sum of small weights for earlier steps.

Prompts run one after the other. A prompt contributes the normal equations of each step; it runs with the weights that
the latest equations of all prompts give, so that after a second pass all have run with nearly the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import CacheConfig
from ..forecast.foca import FoCa
from ..kernels.probe import probe, residual_of
from ..plans import Forecast, UpdateRule
from ..runtime.region import CallFacts
from ..runtime.side_inputs import relative_change
from ..runtime.slots import Slots
from ..runtime.update_check import matching, parts_of
from .recording import ELEMENTS, Recording
from .solver import term_of

RIDGE = 1e-3  # of the mean diagonal of the normal equations
PROBE = 0.5  # by which a weight is moved to see what it does; large beside the rounding of half precision


class Normal(NamedTuple):
    """What one prompt says about the free weights z of one step: |J z - y|^2 = z' a z - 2 z' b + const."""

    a: Tensor
    b: Tensor


class Place(NamedTuple):
    """Where a free weight belongs: it moves weight from the newest snapshot to that of ``source``."""

    branch: int
    region: int
    stream: int
    source: int


@dataclass
class StepFit:
    """The free weights of one step, whose last source is the step itself where it is computed (``corrects``).
    ``equations`` are by prompt."""

    sources: tuple[int, ...]
    places: list[Place]
    corrects: bool
    equations: dict[int, Normal] = field(default_factory=dict)

    def solve(self) -> Tensor:
        """The free weights, float64, shape (len(places),): zeros are the prior."""
        size = len(self.places)
        if not self.equations or not size:
            return torch.zeros(size, dtype=torch.float64)
        a = torch.stack([one.a for one in self.equations.values()]).sum(0)
        b = torch.stack([one.b for one in self.equations.values()]).sum(0)
        ridge = RIDGE * a.diagonal().mean().clamp_min(1e-300)
        return torch.linalg.solve(a + ridge * torch.eye(size, dtype=torch.float64), b)


def sources_of(step: int, computed: Sequence[int], snapshots: int) -> tuple[int, ...]:
    """The last ``snapshots`` of the ``computed`` steps before ``step``."""
    return tuple(one for one in computed if one < step)[-snapshots:]


Start = Callable[[int, Sequence[int], int, int], list[float]]
"""The weights that a fit begins with: of a step, its sources, branch and region."""


def foca_start(step: int, sources: Sequence[int], branch: int, region: int) -> list[float]:
    """FoCa's weights over the step numbers; older sources than FoCa looks at have none."""
    foca, config = FoCa(), CacheConfig()
    used = sources[-foca.snapshots(config) :]
    return [0.0] * (len(sources) - len(used)) + foca.weights(used, step, config)


class Fit:
    """The fit of one module: ``computed`` steps, ``rules`` of the solver, ``streams`` of each region."""

    def __init__(
        self,
        computed: Sequence[int],
        rules: Sequence[UpdateRule | None],
        branches: Sequence[int],
        streams: Sequence[int],
        snapshots: int,
        start: Start = foca_start,
    ) -> None:
        self._start = start
        self.computed, self.rules, self.branches = tuple(computed), rules, branches
        self.streams, self.snapshots = tuple(streams), snapshots
        self.steps: dict[int, StepFit] = {}
        for step in range(len(branches)):
            corrects = step in self.computed
            sources = sources_of(step, computed, snapshots - corrects) + (step,) * corrects
            if corrects and (len(sources) == 1 or step >= len(rules) or rules[step] is None):
                continue
            places = [
                Place(branch, region, stream, source)
                for branch in range(branches[step])
                for region, count in enumerate(streams)
                for stream in range(count)
                for source in range(len(sources) - 1)
            ]
            self.steps[step] = StepFit(sources, places, corrects)

    def forecasts(self, *, corrects: bool) -> dict[int, Forecast]:
        """The weights as they stand, of the steps that are forecast, or of those that are computed and corrected."""
        return {step: self._forecast(step, fit) for step, fit in self.steps.items() if fit.corrects == corrects}

    def _forecast(self, step: int, fit: StepFit) -> Forecast:
        weights = self.weights(step, fit.solve())
        return Forecast(
            fit.sources,
            tuple(
                tuple(
                    tuple(tuple(weights[branch][region][stream]) for stream in range(count))
                    for region, count in enumerate(self.streams)
                )
                for branch in range(self.branches[step])
            ),
        )

    def _begin(self, step: int, fit: StepFit, branch: int, region: int) -> list[float]:
        if fit.corrects:
            return [0.0] * (len(fit.sources) - 1) + [1.0]
        return self._start(step, fit.sources, branch, region)

    def weights(self, step: int, free: Tensor) -> list[list[list[list[float]]]]:
        """``weights[branch][region][stream][source]``."""
        fit = self.steps[step]
        weights = [
            [
                [self._begin(step, fit, branch, region) for _ in range(count)]
                for region, count in enumerate(self.streams)
            ]
            for branch in range(self.branches[step])
        ]
        for place, value in zip(fit.places, free.tolist(), strict=True):
            stream = weights[place.branch][place.region][place.stream]
            stream[place.source] += value
            stream[-1] -= value
        return weights


class FittingStep:
    """The ``step`` of one call: every region runs, or is forecast with ``weights[region]``."""

    def __init__(
        self,
        slots: Callable[[int], Slots],
        weights: Sequence[Sequence[Sequence[float]]] | None,
        keep: Callable[[int, Sequence[Tensor], Sequence[Tensor | None]], None],
        measure: Callable[[int, Tensor | None, Tensor], None],
    ) -> None:
        self._slots, self._weights, self._keep, self._measure = slots, weights, keep, measure

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> _FittingRegion:
        self._measure(region, entry, value)
        return _FittingRegion(self, region)

    def run(self, region: int, code: Callable[..., Any], operands: Sequence[Any], bases: Any) -> Sequence[Tensor]:
        if self._weights is not None:
            return self._slots(region).forecast(self._weights[region], bases)
        values: Sequence[Tensor] = code(*operands)
        self._keep(region, values, bases)
        return values


class _FittingRegion(NamedTuple):
    step: FittingStep
    region: int

    def run(self, code: Callable[..., Any], operands: Sequence[Any], bases: Any) -> Sequence[Tensor]:
        return self.step.run(self.region, code, operands, bases)


class FittingRun:
    """One draw of one module under ``fit``: ``prompt`` is the number of the prompt, ``reference`` its recording.

    ``learn``: contributes equations; otherwise the weights as they stand are only used.
    """

    def __init__(self, fit: Fit, prompt: int, reference: Recording, config: CacheConfig) -> None:
        self._fit, self._prompt, self._reference, self._config = fit, prompt, reference, config
        self._slots: dict[tuple[int, int], Slots] = {}  # (region, branch)
        self._latents: list[Tensor] = []
        self._outputs: list[list[Tensor]] = []
        self._columns: list[Tensor] = []  # of the step under way, in the order of the free weights
        self._used = torch.zeros(0)
        self.differences: dict[int, float] = {}

    def call(self, facts: CallFacts, forward: Callable[[object], Any]) -> Any:
        step, branch = facts.state.clock.step, facts.branch
        fit = self._fit.steps.get(step)
        results = forward(self._step(branch, step, None)) if fit is None or fit.corrects else None
        if fit is None:
            self._note(facts, results)
            return results
        if branch == 0 or not self._columns:
            self._used = fit.solve()
            self._columns = []
        weights = self._fit.weights(step, self._used)
        results = forward(self._step(branch, step, weights[branch], trial=fit.corrects))
        place = self._note(facts, results)
        rule = self._fit.rules[step] if step < len(self._fit.rules) else None
        if place is None or rule is None:
            return results
        parts = self._reference.batch_branches
        mine = self._outputs[step][-parts:]
        first = branch * parts
        scales = [rule.of(first + i) for i in range(parts)]
        for number, where in enumerate(fit.places):
            if where.branch == branch:
                moved = self._used.clone()
                moved[number] += PROBE
                trial = forward(self._step(branch, step, self._fit.weights(step, moved)[branch], trial=True))
                outputs = trial if isinstance(trial, (tuple, list)) else [trial]
                there = [part.cpu() for part in parts_of(outputs[place[1]], parts, ELEMENTS)]
                change = sum(a * (new - old) for a, new, old in zip(scales, there, mine, strict=True))
                self._columns.append(torch.as_tensor(change) / PROBE)
        if len(self._columns) == len(fit.places):
            self._learn(step, fit, rule)
        return results

    def _learn(self, step: int, fit: StepFit, rule: UpdateRule) -> None:
        """All branches of ``step`` have run: the equations of this prompt."""
        reached = torch.zeros_like(self._latents[step], dtype=torch.float64)
        for term, coefficient in zip(rule.terms, rule.coefficients, strict=True):
            reached += coefficient * term_of(self._latents, self._outputs, step - term.lag, term.source).double()
        missing = self._reference.latents[step + 1].double() - reached
        jacobian = torch.stack(self._columns, dim=1).double()
        right = missing + jacobian @ self._used
        fit.equations[self._prompt] = Normal(jacobian.T @ jacobian, jacobian.T @ right)
        self._columns = []

    def _note(self, facts: CallFacts, results: Any) -> tuple[int, int] | None:
        """Samples of the latents and of what the call returns."""
        step, moving = facts.state.clock.step, facts.call.moving
        place = matching(moving, results)
        if place is None:
            return None
        parts = self._reference.batch_branches
        if step == len(self._latents):
            self._latents.append(parts_of(moving[place[0]], parts, ELEMENTS)[0].cpu())
            self._outputs.append([])
        outputs = results if isinstance(results, (tuple, list)) else [results]
        self._outputs[step] += [part.cpu() for part in parts_of(outputs[place[1]], parts, ELEMENTS)]
        return place

    def _step(
        self, branch: int, step: int, weights: Sequence[Sequence[Sequence[float]]] | None, *, trial: bool = False
    ) -> FittingStep:
        def slots(region: int) -> Slots:
            return self._slots.setdefault((region, branch), Slots())

        def keep(region: int, values: Sequence[Tensor], bases: Sequence[Tensor | None]) -> None:
            slots(region).store(step, self._fit.snapshots, values, bases, self._config.snapshot_dtype)

        def measure(region: int, entry: Tensor | None, value: Tensor) -> None:
            mine = slots(region)
            if trial:
                return
            if weights is None:
                mine.probe = residual_of(value, entry)
            elif mine.probe is not None:
                changed, before = probe(value, entry, mine.probe)[1].tolist()
                difference = relative_change(changed, before)
                self.differences[step] = max(self.differences.get(step, 0.0), difference)

        return FittingStep(slots, weights, keep, measure)
