"""From recordings to schedules, and from a fit to the plan of a module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..plans import Conditions, Cut, Part, UpdateRule
from .errors import TuneError
from .fitting import Fit, Start, foca_start
from .recording import Recording
from .solver import update_rules
from .steps import LOOK_BACK, Schedules, best_weights, schedules

RULES_KEPT = 2  # of the first steps, for a run to be compared with


@dataclass
class Module:
    """One module of the model, as recorded with all prompts of the fit."""

    name: str
    cut: Cut
    recordings: Sequence[Recording]

    def __post_init__(self) -> None:
        first = self.recordings[0]
        for one in self.recordings[1:]:
            if (one.found, one.times, one.branches, one.batch_branches) != (
                first.found, first.times, first.branches, first.batch_branches
            ):  # fmt: skip
                raise TuneError(
                    "the prompts were not drawn alike: their latents, times or branches of guidance differ. A plan is "
                    "for one resolution, one number of steps and one guidance; tune for each"
                )
        if first.steps < LOOK_BACK + 2:
            raise TuneError(f"generations of {first.steps} steps leave nothing to plan: at least 5 are needed")

    @property
    def steps(self) -> int:
        return self.recordings[0].steps

    @property
    def reused_cost(self) -> float:
        """What a forecast step costs, in computed ones."""
        first = self.recordings[0]
        return 1 - sum(first.skipped) / first.blocks

    @cached_property
    def rules(self) -> list[UpdateRule | None]:
        """How the solver makes the latents of each step but the first."""
        return update_rules(self.recordings)

    @property
    def in_sequence(self) -> bool:
        """Whether weights can be fitted on cached runs, because the solver's rules are known."""
        return all(rule is not None for rule in self.rules)

    @cached_property
    def gram(self) -> tuple[Tensor, Tensor]:
        """Inner products and coefficients (steps.py), of the outputs, or of what regions add where there is no rule."""
        if self.in_sequence:
            vectors = [one.outputs for one in self.recordings]
        else:
            vectors = [one.residuals for one in self.recordings]
        sources = min(len(outputs) for one in vectors for outputs in one)
        gram = torch.zeros(sources * self.steps, sources * self.steps, dtype=torch.float64)
        for one in vectors:
            rows = torch.stack([one[step][source] for source in range(sources) for step in range(self.steps)]).double()
            gram += rows @ rows.T / len(vectors)
        scales = torch.ones(sources, self.steps, dtype=torch.float64)
        if not self.in_sequence:
            blocks = torch.eye(sources, dtype=torch.float64).repeat_interleave(self.steps, 0)
            return gram * (blocks @ blocks.T), scales
        for step, rule in enumerate(self.rules):
            assert rule is not None
            scales[:, step] = torch.tensor([rule.of(source) for source in range(sources)])
        return gram, scales

    @cached_property
    def schedules(self) -> Schedules:
        """The best computed steps for each number of them."""
        return schedules(*self.gram)

    def fit(self, computed: Sequence[int], snapshots: int) -> Fit:
        """The fit for these ``computed`` steps, with the weights that it begins with."""
        first = self.recordings[0]
        start = foca_start if self.in_sequence else self._residual_weights()
        return Fit(computed, self.rules, first.branches, first.streams, snapshots, start)

    def _residual_weights(self) -> Start:
        """The best weights for what regions add in the uncached runs: where the solver's rule is not known."""
        gram, _ = self.gram
        regions = len(self.recordings[0].streams)

        def start(step: int, sources: Sequence[int], branch: int, region: int) -> list[float]:
            offset = (branch * regions + region) * self.steps
            columns = [offset + one for one in sources]
            inner, right = gram[columns][:, columns][None], gram[columns, offset + step][None]
            weights: list[float] = best_weights(inner, right, torch.ones(1, len(columns), dtype=torch.bool), 1)[
                0
            ].tolist()
            return weights

        return start

    def part(self, fit: Fit, differences: Mapping[int, float]) -> Part:
        """The plan of this module."""
        first = self.recordings[0]
        found = first.found
        conditions = Conditions(
            structure=found.structure,
            weights=found.weights,
            dtype=found.dtype,
            torch=found.torch,
            shapes=found.shapes,
            times=tuple(first.times),
            branches=tuple(first.branches),
            numbers=found.numbers,
            scalars=first.scalars,
            rules=tuple(self.rules[:RULES_KEPT]),
            batch_branches=first.batch_branches,
        )
        return Part(
            self.name, self.cut, conditions, fit.forecasts(corrects=False), fit.forecasts(corrects=True),
            dict(differences), first.skipped, first.blocks,
        )  # fmt: skip


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
