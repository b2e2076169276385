"""One call of a model: what its guards decide, and how its regions are computed or forecast."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..config import CacheConfig
from ..forecast import FORECASTERS, Forecaster
from ..kernels.probe import probe
from ..policy import POLICIES, Policy, StepView, Verdict
from .clock import Position
from .host_read import HostRead
from .identity import layout
from .side_inputs import relative_change
from .slots import Slots
from .stats import StepStats
from .stopwatch import Stopwatch
from .table import ModuleState, SharedDiff

log = logging.getLogger("dit_compile")

_policies: dict[str, Policy] = {}
_forecasters: dict[str, Forecaster] = {}


def _policy(name: str) -> Policy:
    if type(_policies.get(name)) is not POLICIES[name]:
        _policies[name] = POLICIES[name]()
    return _policies[name]


def _forecaster(name: str) -> Forecaster:
    if type(_forecasters.get(name)) is not FORECASTERS[name]:
        _forecasters[name] = FORECASTERS[name]()
    return _forecasters[name]


class CallStep:
    """The ``step`` that the top-level graph is called with."""

    def __init__(
        self,
        graph: int,
        regions: int,
        state: ModuleState,
        position: Position,
        config: CacheConfig,
        side: Sequence[Tensor],
        time: HostRead | None,
        late_time: Callable[[], None],
    ) -> None:
        self.graph = graph
        self.regions = regions
        self.state = state
        self.position = position
        self.config = config
        self.side = side
        self.policy = _policy(config.policy)
        self.forecaster = _forecaster(config.forecast)
        self._time = time
        self._late_time = late_time

    @property
    def index(self) -> int:
        return self.state.clock.step

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> RegionCall:
        """Decides about ``region``; ``value - entry`` is the effect of its front blocks."""
        if not self.config.enabled:
            return RegionCall(self, region, None, None, Verdict(False, "disabled"), None)
        slots = self._slots(region)
        key = (*layout(value), self.position.shapes)
        reshaped = slots.key is not None and slots.key != key
        if reshaped:
            slots.clear()
        slots.key = key
        verdict = self._verdict_without_data(region, reshaped)
        residual, diff = None, None
        if self.config.downsample_factor > 1:
            value = value[..., :: self.config.downsample_factor]
            entry = entry[..., :: self.config.downsample_factor] if entry is not None else None
        if verdict is None:
            verdict, residual, diff = self._verdict_with_data(region, entry, value)
        elif self.policy.needs_probe and (not verdict.reuse or self.policy.reference == "previous"):
            residual, _ = probe(value, entry, None)
        slots = self._slots(region)
        slots.key = key
        return RegionCall(self, region, slots, residual, verdict, diff)

    def _verdict_with_data(
        self, region: int, entry: Tensor | None, value: Tensor
    ) -> tuple[Verdict, Tensor, float | None]:
        slots, step = self._slots(region), self.index
        shared = self.state.diffs.get((self.graph, region)) if self.config.cfg_decision == "shared" else None
        if shared is not None and shared.step == step and shared.branch != self.position.branch:
            residual, _ = probe(value, entry, None)
            return self._verdict(region, shared.diff), residual, shared.diff
        previous = slots.probe if slots.probe is not None and slots.probe.shape == value.shape else None
        residual, sums = probe(value, entry, previous)
        side = slots.side.compare(self.side)
        diff, *side_diffs = self._read(sums, *(side or ()))
        if self.index != step:  # a timestep that came along has begun a new generation: its warm-up comes first
            verdict = self._verdict_without_data(region, False)
            if verdict is not None:
                return verdict, residual, diff
        self.state.diffs[self.graph, region] = SharedDiff(self.index, self.position.branch, diff)
        verdict = self._verdict(region, diff)
        threshold = self.config.residual_diff_threshold
        if verdict.reuse and not (side is not None and all(d < threshold for d in side_diffs)):
            verdict = Verdict(False, "input_changed")
        return verdict, residual, diff

    def _slots(self, region: int) -> Slots:
        return self.state.slots.setdefault((self.graph, region, self.position.branch), Slots())

    def _view(self, region: int) -> StepView:
        slots = self._slots(region)
        return StepView(self.index, slots.cached, slots.run, region, self.regions, slots.memory)

    def _verdict_without_data(self, region: int, reshaped: bool) -> Verdict | None:
        """The verdict, or None when it needs a number from the device."""
        slots = self._slots(region)
        if not slots.ring:
            return Verdict(False, "shape_changed" if reshaped else "no_snapshot")
        self._learn(region)
        verdict = self.policy.before(self._view(region), self.config)
        if verdict is None:
            return verdict if slots.probe is not None else Verdict(False, "no_snapshot")
        if verdict.reuse and any(not pending.certain for pending in self.state.pending):
            step = self.index
            self._generation().host_reads += not all(pending.read.ready() for pending in self.state.pending)
            self._late_time()
            if self.index != step:
                return self._verdict_without_data(region, False)
        return verdict

    def _read(self, probe_sums: Tensor, *side_sums: Tensor) -> list[float]:
        """Relative changes: of the probe (NaN when it was zero) and of inputs."""
        changed, before, *side = HostRead(probe_sums, *side_sums).values()
        self._generation().host_reads += 1
        if self._time is not None:
            self._late_time()
        pairs = zip(side[::2], side[1::2], strict=True)
        return [changed / before if before else math.nan, *(relative_change(*pair) for pair in pairs)]

    def _learn(self, region: int) -> None:
        """Tells the policy by how much the last computed step changed the effect."""
        slots = self._slots(region)
        read, slots.change = slots.change, None
        if read is not None and self.policy.watches_change:
            self._generation().host_reads += not read.ready()
            change = relative_change(*read.values())
            if math.isfinite(change):
                self.policy.learn(self._view(region), self.config, change)

    def _verdict(self, region: int, diff: float) -> Verdict:
        slots = self._slots(region)
        if not slots.ring:
            return Verdict(False, "no_snapshot")
        if not math.isfinite(diff):
            slots.ring.clear()  # a snapshot that is not finite would spoil every forecast it has a weight in
            self._warn_non_finite()
            return Verdict(False, "non_finite")
        return self.policy.after(self._view(region), self.config, diff)

    def _warn_non_finite(self) -> None:
        if all(step.reason != "non_finite" for step in self._generation().steps):
            log.warning(
                "dit_cache: the probe of step %d is NaN, infinite or all zero; such steps are computed. Check latents "
                "and weights: with the cache off (DIT_CACHE_ENABLED=0) the values are the same",
                self.index,
            )

    def _generation(self) -> Any:
        return self.state.generation

    def record(self, stats: StepStats) -> None:
        self._generation().steps.append(stats)


class RegionCall:
    """A decision and what it takes to carry it out."""

    __slots__ = ("_call", "_diff", "_region", "_residual", "_slots", "_verdict")

    def __init__(
        self,
        call: CallStep,
        region: int,
        slots: Slots | None,
        residual: Tensor | None,
        verdict: Verdict,
        diff: float | None,
    ) -> None:
        self._call = call
        self._region = region
        self._slots = slots
        self._residual = residual
        self._verdict = verdict
        self._diff = diff

    def run(
        self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        """The region's outputs, computed or forecast."""
        call, slots, reuse = self._call, self._slots, self._verdict.reuse
        device = next(operand.device for operand in operands if isinstance(operand, Tensor))
        watch = Stopwatch(device)
        outputs: Sequence[Tensor]
        if slots is not None and reuse:
            steps = [snapshot.step for snapshot in slots.ring][-call.forecaster.snapshots(call.config) :]
            weights = call.forecaster.weights(steps, call.index, call.config)
            outputs = slots.forecast([0.0] * (len(slots.ring) - len(weights)) + weights, bases)
            watch.stop()
            if call.policy.reference == "previous" and self._residual is not None:
                slots.probe = self._residual
            slots.cached += 1
            slots.run += 1
        else:
            outputs = region(*operands)
            watch.stop()
            if slots is not None:
                capacity = max(call.forecaster.snapshots(call.config), 1 + call.policy.watches_change)
                slots.store(call.index, capacity, outputs, bases)
                if call.policy.watches_change:
                    slots.watch_change()
                slots.probe = self._residual
                if call.policy.needs_probe:
                    slots.side.remember(call.side)
                slots.run = 0
        action = "reuse" if reuse else "compute"
        call.record(
            StepStats(call.index, call.position.branch, action, self._verdict.reason, self._diff, self._region, watch)
        )
        return outputs
