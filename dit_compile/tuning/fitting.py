"""The weights of a plan: which there are, and what they are fitted to.

Weights are fitted in sequence on cached runs (walk.py). At each step t they are solved for so that the solver's next
latents are those of the uncached run:

    sum_b a_t^b v_t^b(w) = x_{t+1} - (what the rule adds besides)

Here x_{t+1} are latents of the uncached run, all else is of the cached run, so errors of earlier steps are taken back.
In each stream the weights keep the sum 1, and a small ridge pulls towards the weights of FoCa, with which the fit
starts. Computed steps are corrected in the same way: what the region has added keeps the weight 1 less the sum of small
weights for earlier steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import CacheConfig
from ..forecast.foca import FoCa
from ..plans import Forecast

RIDGE = 1e-3  # of the mean diagonal of the normal equations

Weights = list[list[list[list[float]]]]  # [branch][region][stream][source]
Start = Callable[[int, Sequence[int], int, int], list[float]]
"""The weights that a fit starts with: of a step, its sources, branch and region."""


class Place(NamedTuple):
    """Where a free weight belongs: it moves weight from the newest snapshot to that of ``source``."""

    branch: int
    region: int
    stream: int
    source: int


@dataclass
class StepFit:
    """The weights of one step, whose last source is the step itself where it is computed (``corrects``): those that the
    fit starts with, and the ``free`` ones that are added, float64, shape (len(places),)."""

    sources: tuple[int, ...]
    places: list[Place]
    corrects: bool
    start: Weights
    free: Tensor

    def weights(self, free: Tensor | None = None) -> Weights:
        """All weights, with ``free`` ones (None: those of the fit)."""
        weights = [[[list(stream) for stream in region] for region in branch] for branch in self.start]
        for place, value in zip(self.places, (self.free if free is None else free).tolist(), strict=True):
            stream = weights[place.branch][place.region][place.stream]
            stream[place.source] += value
            stream[-1] -= value
        return weights

    def solve(self, equations: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Sets ``free`` to what minimises |J z - y|^2 over all prompts; ``equations`` are J'J and J'y of each."""
        if self.places:
            a, b = (sum(parts[1:], start=parts[0]) for parts in zip(*equations, strict=True))
            ridge = RIDGE * a.diagonal().mean().clamp_min(1e-300)
            self.free = torch.linalg.solve(a + ridge * torch.eye(len(self.places), dtype=torch.float64), b)


def sources_of(step: int, computed: Sequence[int], snapshots: int, branches: Sequence[int]) -> tuple[int, ...]:
    """The last ``snapshots`` of the ``computed`` steps before ``step`` since which all its ``branches`` have run."""
    since = step
    while since and branches[since - 1] >= branches[step]:
        since -= 1
    return tuple(one for one in computed if since <= one < step)[-snapshots:]


def foca_start(step: int, sources: Sequence[int], branch: int, region: int) -> list[float]:
    """FoCa's weights over the step numbers; older sources than FoCa looks at have none."""
    foca, config = FoCa(), CacheConfig()
    used = sources[-foca.snapshots(config) :]
    return [0.0] * (len(sources) - len(used)) + foca.weights(used, step, config)


class Fit:
    """The weights of one module: ``computed`` are the steps that its regions run at, ``branches`` the calls of each of
    its steps, ``streams`` those of each region. With ``corrects`` computed steps are corrected, where ``can_learn``
    says that their weights can be fitted."""

    def __init__(
        self,
        computed: Sequence[int],
        branches: Sequence[int],
        streams: Sequence[int],
        snapshots: int,
        *,
        can_learn: Sequence[bool],
        start: Start = foca_start,
    ) -> None:
        self.computed, self.snapshots = tuple(computed), snapshots
        self.steps: dict[int, StepFit] = {}
        for step in range(len(branches)):
            corrects = step in self.computed
            sources = sources_of(step, computed, snapshots - corrects, branches) + (step,) * corrects
            if corrects and (len(sources) == 1 or not can_learn[step]):
                continue
            newest = [0.0] * (len(sources) - 1) + [1.0]
            weights = [
                [
                    [newest if corrects else start(step, sources, branch, region)] * count
                    for region, count in enumerate(streams)
                ]
                for branch in range(branches[step])
            ]
            places = [
                Place(branch, region, stream, source)
                for branch in range(branches[step] if can_learn[step] else 0)
                for region, count in enumerate(streams)
                for stream in range(count)
                for source in range(len(sources) - 1)
            ]
            free = torch.zeros(len(places), dtype=torch.float64)
            self.steps[step] = StepFit(sources, places, corrects, weights, free)

    def forecasts(self, *, corrects: bool) -> dict[int, Forecast]:
        """The weights as they stand, of the steps that are forecast, or of those that are computed and corrected."""
        return {
            step: Forecast(fit.sources, _tuples(fit.weights()))
            for step, fit in self.steps.items()
            if fit.corrects == corrects
        }


def _tuples(value: Weights) -> tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]:
    return tuple(tuple(tuple(map(tuple, region)) for region in branch) for branch in value)
