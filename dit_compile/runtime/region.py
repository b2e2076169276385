"""Carries out what the guard of a region has decided: runs the region, forecasts it, or each for some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import CacheConfig
from ..forecast import Forecaster, ForecastError, wanted_snapshots
from ..policy import Policy, StepView, Verdict
from .budget import Share
from .cuda_graphs import room_in_graph, without_graph
from .inputs import Call
from .planned import PlannedRun
from .probe_distance import Way, keep_probe
from .rows import RowPlaces, Rows, made, rows_like, take
from .slots import Slots, probe_bytes, snapshot_bytes
from .state import ModuleState
from .stats import StepStats, Stopwatch, stopwatch
from .transfer import Outbox, total

Bases = Sequence[Tensor | None]


@dataclass(frozen=True)
class GraphInfo:
    """What a call must know of its graph.

    ``frame`` numbers the function of the model that Dynamo took the graph from; graphs of one function with equal
    ``signature`` share snapshots. Of each region: ``rows`` says how rows are taken from its operands (None: they cannot
    be), ``mains`` which of its outputs is the main stream (None: unknown).
    """

    frame: int
    rows: tuple[RowPlaces | None, ...]
    mains: tuple[int | None, ...]
    signature: object = None


@dataclass(slots=True)
class CallFacts:
    """What all regions of one call of a model have in common. ``numbers`` are those inputs that are Python numbers.

    ``planned`` is the plan that is in force. ``lags``: steps are decided by what the last one has measured;
    ``never_waits``: and, where that has not arrived, they are computed.
    """

    graph: GraphInfo
    state: ModuleState
    branch: int
    config: CacheConfig
    policy: Policy
    forecaster: Forecaster
    call: Call
    numbers: tuple[float, ...]
    outbox: Outbox
    planned: PlannedRun | None = None
    lags: bool = False
    never_waits: bool = False


@dataclass(eq=False, slots=True)
class Decision:
    """What a guard has decided about rows that decide together, and what it is based on.

    ``value`` and ``entry`` are what the guard compares, ``residual`` their difference where it was formed, ``diff`` the
    measured change, ``way`` what a forecaster that follows the probe wants to know. ``weights`` are those of the
    snapshots, where the verdict is to reuse.
    """

    region: int
    number: int
    rows: Rows
    slots: Slots
    key: tuple[object, ...]
    value: Tensor = field(repr=False)
    entry: Tensor | None = field(repr=False)
    verdict: Verdict | None = None
    view: StepView = field(init=False, repr=False)  # what the policy sees, where there is something to reuse
    residual: Tensor | None = field(default=None, repr=False)
    diff: float | None = None
    way: Way | None = None
    weights: Sequence[Sequence[float]] = ()

    @property
    def reuse(self) -> bool:
        return self.verdict is not None and self.verdict.reuse


@dataclass(slots=True)
class RegionCall:
    """One region in one call: runs or forecasts it as ``decisions`` say, and keeps what later steps need of it."""

    facts: CallFacts
    decisions: Sequence[Decision]
    places: RowPlaces | None

    def run(self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Bases) -> Sequence[Tensor]:
        """The region's outputs, computed or forecast."""
        decisions = self.decisions
        device = decisions[0].value.device
        computing = [decision for decision in decisions if not decision.reuse]
        if not computing:
            outputs = self._all_reuse(region, bases, device)
        elif len(computing) == len(decisions):
            outputs = self._all_compute(region, operands, bases, device)
        else:
            outputs = self._mixed(region, operands, bases, computing, device)
        facts = self.facts
        if decisions[0].region == len(facts.graph.rows) - 1:
            facts.outbox.send()  # whatever this call has to say to the next ones
        return outputs

    def _all_compute(
        self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Bases, device: torch.device
    ) -> Sequence[Tensor]:
        watch = stopwatch(device, self.facts.config)
        outputs = region(*operands)
        parts = len(self.decisions)
        for decision in self.decisions:
            mine = [decision.rows.of(output) for output in outputs] if parts > 1 else outputs
            self._computed(decision, mine, _of(decision, bases) if parts > 1 else bases, watch, parts)
        if self.facts.planned is not None:
            return self._corrected(self.facts.planned, region, outputs, bases)
        return outputs

    def _corrected(
        self, planned: PlannedRun, region: Callable[..., Any], outputs: Sequence[Tensor], bases: Bases
    ) -> Sequence[Tensor]:
        """What the region has computed, with the plan's weights for it and for earlier steps."""
        if len(self.decisions) > 1:
            return outputs
        decision, step = self.decisions[0], self.facts.state.clock.step
        weights = planned_weights(self.facts, planned, decision)
        if weights is None or decision.slots.ring[-1].step != step:
            return outputs
        return decision.slots.forecast(weights, bases, room_in_graph(region, decision.slots.outputs))

    def _all_reuse(self, region: Callable[..., Any], bases: Bases, device: torch.device) -> Sequence[Tensor]:
        decisions = self.decisions
        watch = stopwatch(device, self.facts.config)
        if len(decisions) == 1:
            outputs = self._forecast(decisions[0], bases, room_in_graph(region, decisions[0].slots.outputs))
        else:
            outputs = decisions[0].slots.room(decisions[0].rows.batch)
            for decision in decisions:
                self._forecast(decision, _of(decision, bases), [decision.rows.of(output) for output in outputs])
        for decision in decisions:
            self._reused(decision, _of(decision, bases) if len(decisions) > 1 else bases, watch, len(decisions))
        return outputs

    def _mixed(
        self,
        region: Callable[..., Sequence[Tensor]],
        operands: Sequence[Any],
        bases: Bases,
        computing: Sequence[Decision],
        device: torch.device,
    ) -> Sequence[Tensor]:
        """The region for the rows that need it, a forecast for the others, put together again."""
        assert self.places is not None
        rows = [decision.rows for decision in computing]
        watch = stopwatch(device, self.facts.config)
        results = without_graph(region)(*take(operands, self.places, rows))
        outputs = [rows_like(tensor, rows[0].batch) for tensor in results]
        for decision, place in zip(computing, made(self.places, rows), strict=True):
            mine = [place.of(tensor) for tensor in results]
            for output, part in zip(outputs, mine, strict=True):
                decision.rows.of(output).copy_(part)
            self._computed(decision, mine, _of(decision, bases), watch, len(computing))
        reusing = [decision for decision in self.decisions if decision.reuse]
        watch = stopwatch(device, self.facts.config)
        for decision in reusing:
            self._forecast(decision, _of(decision, bases), [decision.rows.of(output) for output in outputs])
        for decision in reusing:
            self._reused(decision, _of(decision, bases), watch, len(reusing))
        return outputs

    def _forecast(self, decision: Decision, bases: Bases, outs: Sequence[Tensor] | None) -> Sequence[Tensor]:
        return decision.slots.forecast(decision.weights, bases, outs)

    def _reused(self, decision: Decision, bases: Bases, watch: Stopwatch | None, parts: int) -> None:
        self._record(decision, "reuse", watch, parts)
        facts, slots = self.facts, decision.slots
        if slots.bases is None and not self._streams_were_measured(decision):
            known = [total(base) for base in bases if base is not None]
            slots.bases = facts.outbox.put(known) if known else None
        if facts.policy.reference == "previous" and decision.residual is not None:
            slots.probe = decision.residual
        slots.cached += 1
        slots.run += 1

    def _streams_were_measured(self, decision: Decision) -> bool:
        """Whether the numbers that the policy got would have shown a stream at this step that is not finite."""
        return decision.residual is not None and self.facts.policy.tap(self.facts.config) in ("residual", "hidden")

    def _computed(
        self, decision: Decision, values: Sequence[Tensor], bases: Bases, watch: Stopwatch | None, parts: int
    ) -> None:
        self._record(decision, "compute", watch, parts)
        planned, verdict = self.facts.planned, decision.verdict
        if planned is not None and verdict is not None:
            planned.computed(self.facts.state.clock.step, verdict.reason)
        if self.facts.config.enabled:
            self._keep(decision, values, bases)

    def _keep(self, decision: Decision, values: Sequence[Tensor], bases: Bases) -> None:
        """What later steps need of this one, as far as ``max_bytes`` allows."""
        facts, slots = self.facts, decision.slots
        config, policy, state = facts.config, facts.policy, facts.state
        slots.run = 0
        slots.probe = decision.residual
        if policy.needs_probe and facts.call.side:
            slots.side.remember(facts.call, decision.rows)
        wanted = max(self._wanted_snapshots(), 1 + policy.watches_change)
        follows = facts.forecaster.follows_probe and not facts.lags
        each = snapshot_bytes(values, config.snapshot_dtype) + probe_bytes(decision.residual if follows else None)
        share = Share(slots.nbytes_besides_snapshots(), each, wanted)
        due = min(len(slots.ring) + 1, wanted)
        granted = state.budget.grant(slots, share, config.max_bytes)
        if config.max_bytes is not None and granted < due:
            state.capped(granted, wanted, config.max_bytes)
        if granted:
            step, points = state.clock.step, state.clock.times.points
            again = bool(slots.ring) and points[slots.ring[-1].step] == points[step] and facts.planned is None
            slots.store(step, granted, values, bases, config.snapshot_dtype, facts.outbox, again=again)
            if policy.watches_change:
                slots.watch_change(facts.outbox)
            if follows:
                keep_probe(slots, decision.residual, facts.outbox)

    def _wanted_snapshots(self) -> int:
        """How many snapshots to keep; one where the forecaster fails, which is said when a step wants to be reused."""
        if self.facts.planned is not None:
            return self.facts.planned.part.snapshots
        try:
            return wanted_snapshots(self.facts.forecaster, self.facts.config)
        except ForecastError:
            return 1

    def _record(self, decision: Decision, action: str, watch: Stopwatch | None, parts: int) -> None:
        facts, verdict, stats = self.facts, decision.verdict, self.facts.state.generation
        assert verdict is not None and stats is not None
        step = StepStats(
            facts.state.clock.step, facts.branch, action, verdict.reason, decision.diff, decision.region,
            decision.number,
        )  # fmt: skip
        stats.record(step, watch, parts)


def planned_weights(
    facts: CallFacts, planned: PlannedRun, decision: Decision
) -> Sequence[Sequence[float]] | None:  # fmt: skip
    """The plan's weights for this step, for each value that leaves the region; None where it has none, or the snapshots
    are not the planned ones."""
    sources = [snapshot.step for snapshot in decision.slots.ring]
    return planned.weights(facts.state.clock.step, facts.branch, decision.region, sources)


def _of(decision: Decision, bases: Bases) -> list[Tensor | None]:
    return [decision.rows.of(base) if base is not None else None for base in bases]
