"""Carries out what the guard of a region has decided: runs the region, forecasts it, or each for some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .budget import Share
from .call_context import CallContext
from .finite import total
from .group import Group
from .rows import RowPlaces, made, rows_like, take
from .snapshot import snapshot_bytes
from .stats import StepStats
from .stopwatch import Stopwatch

Bases = Sequence[Tensor | None]


class RegionCall:
    """The decisions about one region and what it takes to carry them out."""

    __slots__ = ("_call", "_groups", "_places")

    def __init__(self, call: CallContext, groups: Sequence[Group], places: RowPlaces | None) -> None:
        self._call = call
        self._groups = groups
        self._places = places

    def run(self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Bases) -> Sequence[Tensor]:
        """The region's outputs, computed or forecast."""
        outputs = self._run(region, operands, bases)
        self._call.region_done(self._groups[0].region)
        return outputs

    def _run(self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Bases) -> Sequence[Tensor]:
        device = next(operand.device for operand in operands if isinstance(operand, Tensor))
        groups = self._groups
        computing = [group for group in groups if not group.reuse]
        if not computing:
            return self._all_reuse(bases, device)
        if len(computing) == len(groups):
            return self._all_compute(region, operands, bases, device)
        return self._mixed(region, operands, bases, computing, device)

    def _all_compute(
        self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Bases, device: torch.device
    ) -> Sequence[Tensor]:
        watch = Stopwatch(device)
        outputs = region(*operands)
        watch.stop()
        divided = len(self._groups) > 1
        for group in self._groups:
            mine = [group.rows.of(output) for output in outputs] if divided else outputs
            self._computed(group, mine, _of(group, bases) if divided else bases, watch, len(self._groups))
        return outputs

    def _all_reuse(self, bases: Bases, device: torch.device) -> Sequence[Tensor]:
        watch = Stopwatch(device)
        outputs: Sequence[Tensor] = ()
        if len(self._groups) == 1:
            outputs = self._forecast(self._groups[0], bases, None)
        else:
            outputs = self._call.slots(self._groups[0]).room(self._groups[0].rows.batch)
            for group in self._groups:
                self._forecast(group, _of(group, bases), [group.rows.of(output) for output in outputs])
        watch.stop()
        for group in self._groups:
            self._reused(group, _of(group, bases) if len(self._groups) > 1 else bases, watch, len(self._groups))
        return outputs

    def _mixed(
        self,
        region: Callable[..., Sequence[Tensor]],
        operands: Sequence[Any],
        bases: Bases,
        computing: Sequence[Group],
        device: torch.device,
    ) -> Sequence[Tensor]:
        """The region for the rows that need it, a forecast for the others, put together again."""
        assert self._places is not None
        rows = [group.rows for group in computing]
        watch = Stopwatch(device)
        results = region(*take(operands, self._places, rows))
        watch.stop()
        outputs = [rows_like(tensor, rows[0].batch) for tensor in results]
        for group, place in zip(computing, made(self._places, rows), strict=True):
            mine = [place.of(tensor) for tensor in results]
            for output, part in zip(outputs, mine, strict=True):
                group.rows.of(output).copy_(part)
            self._computed(group, mine, _of(group, bases), watch, len(computing))
        reusing = [group for group in self._groups if group.reuse]
        watch = Stopwatch(device)
        for group in reusing:
            self._forecast(group, _of(group, bases), [group.rows.of(output) for output in outputs])
        watch.stop()
        for group in reusing:
            self._reused(group, _of(group, bases), watch, len(reusing))
        return outputs

    def _forecast(self, group: Group, bases: Bases, outs: Sequence[Tensor] | None) -> Sequence[Tensor]:
        call = self._call
        main = call.graph.mains[group.region] if call.config.forecast_streams == "main" else None
        return call.slots(group).forecast(group.weights, bases, outs, main)

    def _reused(self, group: Group, bases: Bases, watch: Stopwatch, parts: int) -> None:
        call, slots = self._call, self._call.slots(group)
        known = [base for base in bases if base is not None]
        if known and slots.bases is None and not call.measures_streams(group):  # nobody has looked at this step's
            slots.bases = call.checks.add([total(base) for base in known])
        if call.policy.reference == "previous" and group.residual is not None:
            slots.probe = group.residual
        slots.cached += 1
        slots.run += 1
        self._record(group, "reuse", watch, parts)

    def _computed(self, group: Group, values: Sequence[Tensor], bases: Bases, watch: Stopwatch, parts: int) -> None:
        call = self._call
        if call.config.enabled:
            self._keep(group, values, bases)
        self._record(group, "compute", watch, parts)

    def _keep(self, group: Group, values: Sequence[Tensor], bases: Bases) -> None:
        """What later steps need of this one, as far as ``max_bytes`` allows."""
        call, slots = self._call, self._call.slots(group)
        config = call.config
        slots.run = 0
        slots.probe = group.residual
        if call.policy.needs_probe:
            slots.side.remember(call.side, group.rows)
        wanted = max(call.wanted_snapshots(), 1 + call.policy.watches_change)
        share = Share(slots.nbytes_besides_snapshots(), snapshot_bytes(values, config.snapshot_dtype), wanted)
        due = min(len(slots.ring) + 1, wanted)
        granted = call.state.budget.grant(slots, share, config.max_bytes)
        if config.max_bytes is not None and granted < due:
            call.state.capped(granted, wanted, config.max_bytes)
        if granted:
            again = bool(slots.ring) and call.point(slots.ring[-1].step) == call.point(call.index)
            slots.store(call.index, granted, values, bases, config.snapshot_dtype, call.checks, again=again)
            if call.policy.watches_change:
                slots.watch_change()

    def _record(self, group: Group, action: str, watch: Stopwatch, parts: int) -> None:
        call, verdict = self._call, group.verdict
        assert verdict is not None
        call.record(
            StepStats(
                call.index, call.position.branch, action, verdict.reason, group.diff, group.region, group.number, watch,
                1 / parts,
            )
        )  # fmt: skip


def _of(group: Group, bases: Bases) -> list[Tensor | None]:
    return [group.rows.of(base) if base is not None else None for base in bases]
