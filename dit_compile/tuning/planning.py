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

RULES_KEPT = 2  # of the first steps, for a run to be compared with


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
        if self.steps < LOOK_BACK + 2:
            raise TuneError(f"{name} runs {self.steps} steps, which leaves nothing to plan: at least 5 are needed")

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
        gram = torch.zeros(sources * self.steps, sources * self.steps, dtype=torch.float64)
        for one in vectors:
            rows = torch.stack([one[step][source] for source in range(sources) for step in range(self.steps)]).double()
            gram += rows @ rows.T / len(vectors)
        scales = torch.ones(sources, self.steps, dtype=torch.float64)
        if not self.in_sequence:
            same = torch.eye(sources, dtype=torch.float64).repeat_interleave(self.steps, 0)
            return gram * (same @ same.T), scales
        for step, rule in enumerate(self._rules):
            if rule is not None:
                scales[:, step] = torch.tensor([rule.of(source) for source in range(sources)])
        return gram, scales

    @cached_property
    def schedules(self) -> Schedules:
        """The best computed steps for each number of them."""
        return schedules(*self.gram)

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
        found = facts.found
        conditions = Conditions(
            structure=found.structure,
            weights=found.weights,
            dtype=found.dtype,
            torch=found.torch,
            shapes=found.shapes,
            times=tuple(facts.times),
            branches=tuple(facts.branches),
            numbers=found.numbers,
            scalars=facts.scalars,
            rules=tuple(self._rules[:RULES_KEPT]),
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
    return [Module(key, name, cut, recordings, rules) for key, name in pairs], rules


def computed_steps(modules: Sequence[Module], cost: float) -> list[tuple[int, ...]] | None:
    """For each module the steps to compute so that all together cost at most ``cost`` full steps, with the least error;
    None where nothing is as cheap."""
    best: tuple[float, list[tuple[int, ...]]] | None = None
    for counts in itertools.product(*(module.schedules.steps for module in modules)):
        spent = sum(
            count + (module.steps - count) * module.reused_cost for module, count in zip(modules, counts, strict=True)
        )
        error = sum(module.schedules.costs[count] for module, count in zip(modules, counts, strict=True))
        if spent <= cost + 1e-9 and (best is None or error < best[0]):
            best = (error, [module.schedules.steps[count] for module, count in zip(modules, counts, strict=True)])
    return None if best is None else best[1]
