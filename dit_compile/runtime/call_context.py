"""What is known of one call of a model, to those who decide about its regions and to those who carry it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import CacheConfig
from ..forecast import FORECASTERS, Forecaster, ForecastError, wanted_snapshots
from ..policy import POLICIES, Policy
from .clock import Position
from .finite import FiniteChecks
from .group import Group
from .rows import RowPlaces
from .slots import Slots
from .stats import GenerationStats, StepStats
from .table import Measured, ModuleState


@dataclass(frozen=True)
class GraphFacts:
    """What a call must know of its graph: its ``frame`` (see Code) and ``signature``, and of each region how rows are
    taken from its operands (None: they cannot be) and which of its outputs is the main stream (None: unknown)."""

    frame: int
    rows: tuple[RowPlaces | None, ...]
    mains: tuple[int | None, ...]
    signature: object = None

    @property
    def regions(self) -> int:
        return len(self.rows)


class CallContext:
    """Where a call stands, its settings and its state. ``side`` are the inputs that are watched beside the latents,
    ``numbers`` the values of those that are Python numbers."""

    def __init__(
        self,
        graph: GraphFacts,
        state: ModuleState,
        position: Position,
        config: CacheConfig,
        side: Sequence[Tensor],
        numbers: tuple[float, ...] = (),
    ) -> None:
        self.graph = graph
        self.state = state
        self.position = position
        self.config = config
        self.side = side
        self.numbers = numbers
        self.policy: Policy = POLICIES.instance(config.policy)
        self.forecaster: Forecaster = FORECASTERS.instance(config.forecast)
        self.measured: list[Measured] = []  # for the next call
        self.checks = FiniteChecks()

    @property
    def index(self) -> int:
        return self.state.clock.step

    def point(self, step: int) -> int:
        """Where ``step`` lies for a forecast: steps of one time are one point (Heun evaluates twice at each)."""
        return self.state.clock.points[step]

    @property
    def generation(self) -> GenerationStats:
        generation = self.state.generation
        assert generation is not None
        return generation

    def slots(self, group: Group) -> Slots:
        key = (self.graph.frame, group.region, self.position.branch, group.number)
        slots = self.state.slots.get(key)
        if slots is None:  # not setdefault: it would make a new one at every call
            slots = self.state.slots[key] = Slots()
        return slots

    def previous_probe(self, group: Group) -> Tensor | None:
        """The probe to compare with, where there is one of this shape."""
        known = self.slots(group).probe
        return known if known is not None and known.shape == group.value.shape else None

    def wanted_snapshots(self) -> int:
        """How many snapshots to keep; one where the forecaster fails, which is said when a step wants to be reused."""
        try:
            return wanted_snapshots(self.forecaster, self.config)
        except ForecastError:
            return 1

    def measures_streams(self, group: Group) -> bool:
        """Whether the numbers that the policy gets would show a stream at this step that is not finite."""
        return self.policy.tap(self.config) in ("residual", "hidden") and group.residual is not None

    def region_done(self, region: int) -> None:
        """Called when ``region`` has been run or forecast. What this call has to say to the next one leaves for the
        host in one transfer."""
        if region == self.graph.regions - 1:
            measured = [torch.stack([measured.sums for measured in self.measured])] if self.measured else []
            read = self.checks.send(measured)
            if measured and read is not None:
                self.state.measured[self.graph.frame, self.position.branch] = (self.measured, read)

    def record(self, stats: StepStats) -> None:
        self.generation.steps.append(stats)
