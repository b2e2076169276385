"""The plan of one module, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .update_rule import UpdateRule

MOST_SNAPSHOTS = 6
MOST_STEPS = 100_000

StreamWeights = tuple[float, ...]  # one for each source, oldest first
RegionWeights = tuple[StreamWeights, ...]  # one for each stream that leaves the region


class Cut(NamedTuple):
    """Where the graph is cut: ``front`` and ``back`` blocks always run, ``scope`` says which regions there are."""

    front: int
    back: int
    scope: str


class Forecast(NamedTuple):
    """How one step is forecast: from the snapshots of the steps ``sources``, oldest first, with ``weights[branch]
    [region][stream][source]``."""

    sources: tuple[int, ...]
    weights: tuple[tuple[RegionWeights, ...], ...]


@dataclass(frozen=True)
class Conditions:
    """What a run must have in common with the calibration runs.

    ``structure`` and ``weights`` are digests of the operators of the graph, and of the weights with their dtypes,
    adapters and quantisation. ``shapes`` are those of the latents without the batch, ``dtype`` theirs. ``times`` are
    the diffusion times as the model gets them (None: the graph has no time input), ``branches`` the calls of each step.
    ``numbers`` are Python numbers, ``scalars`` small tensors among the inputs (guidance), at the first step.
    ``rules`` are the solver's updates at the first steps (None: could not be read), ``batch_branches`` counts the
    branches that one batch holds.
    """

    structure: str
    weights: str
    dtype: str
    torch: str
    shapes: tuple[tuple[int, ...], ...]
    times: tuple[float | None, ...]
    branches: tuple[int, ...]
    numbers: tuple[float, ...] = ()
    scalars: tuple[float, ...] = ()
    rules: tuple[UpdateRule | None, ...] = ()
    batch_branches: int = 1

    @property
    def steps(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Part:
    """The plan of one module. ``forecasts`` has every step that is not computed; ``corrections`` has computed steps,
    which are the last of their own sources.

    ``differences`` are the largest differences that calibration runs have measured at each forecast step, which the
    setting ``plan_guard`` compares with. ``skipped`` is the number of blocks that each region skips, of ``blocks``.
    """

    model: str
    cut: Cut
    conditions: Conditions
    forecasts: Mapping[int, Forecast]
    corrections: Mapping[int, Forecast] = field(default_factory=dict)
    differences: Mapping[int, float] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    blocks: int = 1

    @property
    def computed(self) -> tuple[int, ...]:
        return tuple(step for step in range(self.conditions.steps) if step not in self.forecasts)

    @property
    def snapshots(self) -> int:
        """How many snapshots a run keeps."""
        both = (*self.forecasts.values(), *self.corrections.values())
        return max((len(forecast.sources) for forecast in both), default=1)

    @property
    def cost(self) -> float:
        """Blocks executed, in full steps."""
        return self.conditions.steps - len(self.forecasts) * sum(self.skipped) / self.blocks


def check(part: Part) -> None:
    """Raises ValueError where ``part`` contradicts itself."""
    steps, branches = part.conditions.steps, part.conditions.branches
    if not 0 < steps <= MOST_STEPS or len(branches) != steps:
        raise ValueError(f"{steps} times and {len(branches)} numbers of branches")
    if part.blocks < 1 or any(count < 1 for count in part.skipped):
        raise ValueError(f"regions that skip {part.skipped} of {part.blocks} blocks")
    if part.forecasts.keys() & part.corrections.keys():
        raise ValueError("a step is both forecast and corrected")
    for step, forecast in (*part.forecasts.items(), *part.corrections.items()):
        sources = forecast.sources
        known = [source for source in range(step + 1) if source not in part.forecasts]
        if not 1 <= len(sources) <= MOST_SNAPSHOTS or list(sources) != known[-len(sources) :] or step >= steps:
            raise ValueError(f"step {step} is forecast from {sources}, not from the last computed steps")
        if len(forecast.weights) < branches[step]:
            raise ValueError(f"step {step} has weights for {len(forecast.weights)} of {branches[step]} branches")
        for regions in forecast.weights:
            if len(regions) != len(part.skipped):
                raise ValueError(f"step {step} has weights for {len(regions)} of {len(part.skipped)} regions")
            for stream in [stream for streams in regions for stream in streams]:
                if len(stream) != len(sources) or not all(map(math.isfinite, stream)):
                    raise ValueError(f"step {step} has weights {stream} for the steps {sources}")
