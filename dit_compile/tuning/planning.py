"""From recordings to schedules, and from weights to the plan of a module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..plans import Conditions, Cut, Part, UpdateRule
from .errors import TuneError
from .fitting import Fit, Start, foca_start
from .recording import ModuleFacts, Recording, Step
from .solver import update_rules
from .steps import LOOK_BACK, Schedules, best_weights, schedules

FEWEST_STEPS = LOOK_BACK + 2  # that leave something to plan
RULES_KEPT = 2  # of the first steps, for a run to be compared with,
EXACT = 0.01  # if their error is below this
SENSES = ((0.0, False), (1.0, False), (4.0, False), (4.0, True))
"""Of the schedules that compete: how much more errors of early steps count, and whether step 1 must be computed."""


class Module:
    """One module: ``key`` is the digest of its weights, ``name`` its class; ``rules`` those of all steps of a draw."""

    def __init__(
        self, key: str, name: str, cut: Cut, recordings: Sequence[Recording], rules: Sequence[UpdateRule | None]
    ) -> None:
        self.key, self.name = key, name
        self._cut, self._recordings = cut, recordings
        self.facts: ModuleFacts = recordings[0].modules[key]
        numbers = [i for i, step in enumerate(recordings[0].steps) if step.module == key]
        self._numbers = numbers
        self._rules = [rules[i] if i < len(rules) else None for i in numbers]
        last = numbers[-1] == len(rules)
        self.in_sequence = all(rule is not None for rule in rules)
        self._can_learn = [self.in_sequence and not (last and i == numbers[-1]) for i in numbers]

    @property
    def steps(self) -> int:
        return len(self._numbers)

    @property
    def reused_cost(self) -> float:
        """What a forecast step costs, in computed ones."""
        return 1 - sum(self.facts.skipped) / self.facts.blocks

    def _of_step(self, recording: Recording, step: int) -> Step:
        return recording.steps[self._numbers[step]]

    @cached_property
    def gram(self) -> tuple[Tensor, Tensor]:
        """Inner products and coefficients (steps.py), of the outputs, or of what regions add where there is no rule."""
        vectors = [
            [
                (one.outputs if self.in_sequence else one.residuals)
                for one in (self._of_step(recording, step) for step in range(self.steps))
            ]
            for recording in self._recordings
        ]
        sources = min(len(found) for one in vectors for found in one)
        if self.in_sequence:
            gram = sum(_inner([one[t][s] for s in range(sources) for t in range(self.steps)]) for one in vectors)
        else:  # sources are forecast apart, and may differ in size
            blocks = [
                [_inner([one[t][source] for t in range(self.steps)]) for source in range(sources)] for one in vectors
            ]
            gram = sum(torch.block_diag(*of_sources) for of_sources in blocks)
        assert isinstance(gram, Tensor)
        scales = torch.ones(sources, self.steps, dtype=torch.float64)
        for step, rule in enumerate(self._rules):
            if rule is not None and self.in_sequence:
                scales[:, step] = torch.tensor([rule.of(source) for source in range(sources)])
        return gram / len(vectors), scales

    @cached_property
    def schedules(self) -> list[Schedules]:
        """The best computed steps for each number of them, for each of ``SENSES``.

        An error of an early step may grow on the way to the picture, which inner products do not tell. Times relative
        to the largest stand for the noise: errors at time t count (1 + a t^4)-fold.
        """
        if self.steps < FEWEST_STEPS:  # an expert that runs a few steps only computes them all
            return [Schedules({self.steps: tuple(range(self.steps))}, {self.steps: 0.0})] * len(SENSES)
        gram, scales = self.gram
        branches, times = self.facts.branches, self.facts.times
        forced = [step for step in range(1, self.steps) if branches[step] > branches[step - 1]]
        largest = max((abs(time) for time in times if time is not None), default=0.0)
        if not largest or None in times:
            return [schedules(gram, scales, forced=forced)]
        shares = torch.tensor([abs(time) / largest for time in times if time is not None], dtype=torch.float64)
        return [
            schedules(gram, scales * (1 + a * shares**4), forced=[*forced, 1] if second else forced)
            for a, second in SENSES
        ]

    def fit(self, computed: Sequence[int], snapshots: int) -> Fit:
        """The fit for these ``computed`` steps, with the weights that it starts with."""
        start = foca_start if self.in_sequence else self._residual_weights()
        facts = self.facts
        return Fit(computed, facts.branches, facts.streams, snapshots, can_learn=self._can_learn, start=start)

    def _residual_weights(self) -> Start:
        """The best weights for what regions add in the uncached runs: where the solver's rule is not known."""
        gram, _ = self.gram
        regions = len(self.facts.streams)

        def start(step: int, sources: Sequence[int], branch: int, region: int) -> list[float]:
            offset = (branch * regions + region) * self.steps
            columns = [offset + one for one in sources]
            inner, right = gram[columns][:, columns][None], gram[columns, offset + step][None]
            known = torch.ones(1, len(columns), dtype=torch.bool)
            weights: list[float] = best_weights(inner, right, known, 1)[0].tolist()
            return weights

        return start

    def part(self, fit: Fit, differences: Mapping[int, float]) -> Part:
        """The plan of this module."""
        facts, recording = self.facts, self._recordings[0]
        conditions = Conditions(
            **facts.found._asdict(),
            times=tuple(facts.times),
            branches=tuple(facts.branches),
            scalars=facts.scalars,
            rules=tuple(rule if rule and rule.error < EXACT else None for rule in self._rules[:RULES_KEPT]),
            batch_branches=recording.parts,
        )
        return Part(
            self.name, self._cut, conditions, fit.forecasts(corrects=False), fit.forecasts(corrects=True),
            dict(differences), facts.skipped, facts.blocks,
        )  # fmt: skip


def modules_of(
    recordings: Sequence[Recording], cut: Cut, names: Sequence[str]
) -> tuple[list[Module], list[UpdateRule | None]]:
    """The modules of recorded draws, in the order of their first calls, and the solver's rules.

    Raises:
        TuneError: the draws do not go alike, or there is nothing to plan.
    """
    first = recordings[0]
    for one in recordings[1:]:
        for key in first.modules.keys() | one.modules.keys():
            a, b = first.modules.get(key), one.modules.get(key)
            if a is None or b is None or (a.found, a.times, a.branches) != (b.found, b.times, b.branches):
                raise TuneError(
                    "the prompts were not drawn alike: modules, shapes of the latents, times or branches of guidance "
                    "differ. A plan is for one resolution, one number of steps and one guidance; tune for each"
                )
    rules = update_rules(recordings)
    named = [names[min(number, len(names) - 1)] for number in range(len(first.modules))]
    pairs = zip(first.modules, named, strict=True)
    modules = [Module(key, name, cut, recordings, rules) for key, name in pairs]
    if all(module.steps < FEWEST_STEPS for module in modules):
        raise TuneError(
            f"the model runs {modules[0].steps} steps, which leaves nothing to plan: at least {FEWEST_STEPS} are needed"
        )
    return modules, rules


def _inner(vectors: Sequence[Tensor]) -> Tensor:
    """Inner products, float64."""
    try:
        rows = torch.stack(list(vectors)).double()
    except RuntimeError:
        raise TuneError(
            "what the blocks add has another size at some steps: a plan is for one size of latents and prompts"
        ) from None
    return rows @ rows.T


def candidates(modules: Sequence[Module], cost: float) -> list[list[tuple[int, ...]]]:
    """For each module the steps to compute so that all together cost at most ``cost`` full steps, with the least error,
    in several senses (``Module.schedules``); none where nothing is as cheap."""
    found: list[list[tuple[int, ...]]] = []
    for sense in range(min(len(module.schedules) for module in modules)):
        best: tuple[float, list[tuple[int, ...]]] | None = None
        plans = [module.schedules[sense] for module in modules]
        for counts in itertools.product(*(plan.steps for plan in plans)):
            pairs = list(zip(modules, plans, counts, strict=True))
            spent = sum(count + (module.steps - count) * module.reused_cost for module, _, count in pairs)
            error = sum(plan.costs[count] for _, plan, count in pairs)
            if spent <= cost + 1e-9 and (best is None or error < best[0]):
                best = (error, [plan.steps[count] for _, plan, count in pairs])
        if best is not None and best[1] not in found:
            found.append(best[1])
    return found
