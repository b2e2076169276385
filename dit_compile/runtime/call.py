"""One call of a model: what its guards decide."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..config import CacheConfig
from ..forecast import ForecastError, checked_weights, damped
from ..kernels.probe import probe
from ..policy import StepView, Verdict
from .call_context import CallContext, GraphFacts
from .clock import Position
from .group import Group
from .host_read import HostRead
from .identity import layout
from .region_call import RegionCall
from .rows import WHOLE, Rows, row_groups
from .side_inputs import SideInputs, relative_change
from .slots import Slots, Unseen
from .table import Measured, ModuleState, SharedDiff

log = logging.getLogger("dit_compile")


class CallStep(CallContext):
    """The ``step`` that the top-level graph is called with."""

    def __init__(
        self,
        graph: GraphFacts,
        state: ModuleState,
        position: Position,
        config: CacheConfig,
        side: Sequence[Tensor],
        numbers: tuple[float, ...],
        time: HostRead | None,
        late_time: Callable[[], None],
    ) -> None:
        super().__init__(graph, state, position, config, side, numbers)
        self._time = time
        self._late_time = late_time

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> RegionCall:
        """Decides about ``region``; ``value - entry`` is the effect of its front blocks."""
        places = self.graph.rows[region]
        if not self.config.enabled:
            return RegionCall(self, [Group(region, WHOLE, Verdict(False, "disabled"))], places)
        if self.policy.lagged and region == 0:
            self._look_at_last_call()
        decision = self.config.batch_decision if places is not None else "one"
        rows = [WHOLE] if decision == "one" else row_groups(decision, value.shape[0])
        groups = [self._group(region, i, part, entry, value) for i, part in enumerate(rows)]
        undecided = [group for group in groups if group.verdict is None]
        if undecided:
            self._decide_with_data(undecided)
        for group in groups:
            self._measure(group)
        return RegionCall(self, groups, places)

    def _group(self, region: int, number: int, rows: Rows, entry: Tensor | None, value: Tensor) -> Group:
        """The rows that decide together, with their verdict if it needs no number from the device."""
        if rows is not WHOLE:
            value, entry = rows.of(value), rows.of(entry) if entry is not None else None
        group = Group(region, rows, None, number)
        slots = self.slots(group)
        key = (*layout(value), self.position.shapes, self.graph.signature)
        if slots.key is not None and slots.key != key:
            same_code = slots.key[-1] == key[-1]
            slots.clear("shape_changed" if same_code else "no_snapshot")
            if not same_code:
                slots.side = SideInputs()  # other code, other inputs
        if slots.numbers not in (None, self.numbers):
            slots.clear("input_changed")  # another LoRA weight, say: never mix snapshots of before and after
        slots.numbers = self.numbers
        slots.key = group.key = key
        every = self.config.downsample_factor
        group.value = value[..., ::every] if every > 1 else value
        group.entry = entry[..., ::every] if every > 1 and entry is not None else entry
        group.verdict = self._verdict_without_data(group)
        if self.policy.lagged:
            group.diff = slots.memory.get("estimate")
        return group

    def _decide_with_data(self, groups: Sequence[Group]) -> None:
        """One transfer for all of ``groups``, but for those that take over what another branch has measured."""
        step = self.index
        if self.config.cfg_decision == "shared":
            groups = [group for group in groups if not self._take_shared(group)]
        sums: list[Tensor] = []
        counts: list[int | None] = []
        for group in groups:
            slots = self.slots(group)
            group.residual, own = probe(group.value, group.entry, self.previous_probe(group))
            side = slots.side.compare(self.side, group.rows)
            counts.append(None if side is None else len(side))
            sums += [own, *(side or ())]
        if not groups:
            return
        pairs = iter(self._read(sums))
        for group, count in zip(groups, counts, strict=True):
            changed, before = next(pairs)
            group.diff = changed / before if before else math.nan
            side_diffs = [relative_change(*next(pairs)) for _ in range(count or 0)]
            self._decide(group, step, count is not None, side_diffs)

    def _decide(self, group: Group, step: int, side_known: bool, side_diffs: list[float]) -> None:
        assert group.diff is not None
        if self.index != step:  # a timestep that came along has begun a new generation: its warm-up comes first
            group.verdict = self._verdict_without_data(group)
            if group.verdict is not None:
                return
        self.state.diffs[self._shared_key(group)] = SharedDiff(self.index, self.position.branch, group.diff)
        verdict = self._verdict(group, group.diff)
        threshold = self.config.residual_diff_threshold
        if verdict.reuse and any(map(math.isnan, side_diffs)):
            verdict = self._non_finite(self.slots(group))
        elif verdict.reuse and not (side_known and all(diff < threshold for diff in side_diffs)):
            verdict = Verdict(False, "input_changed")
        group.verdict = verdict

    def _shared_key(self, group: Group) -> tuple[int, int, int]:
        return (self.graph.frame, group.region, group.number)

    def _take_shared(self, group: Group) -> bool:
        shared = self.state.diffs.get(self._shared_key(group))
        if shared is None or shared.step != self.index or shared.branch == self.position.branch:
            return False
        group.diff = shared.diff
        group.verdict = self._verdict(group, shared.diff)
        return True

    def _measure(self, group: Group) -> None:
        """Measures what the policy will want to compare with at a later step."""
        policy, verdict = self.policy, group.verdict
        assert verdict is not None
        slots = self.slots(group)
        slots.key = group.key
        if policy.lagged:
            previous = self.previous_probe(group)
            group.residual, sums = probe(group.value, group.entry, previous)
            if previous is not None and slots.ring:
                self.measured.append(Measured(slots, sums, self._since(slots)))
        elif group.residual is None and policy.needs_probe and (not verdict.reuse or policy.reference == "previous"):
            previous = self.previous_probe(group) if slots.ring and not verdict.reuse and self._ends_history() else None
            group.residual, sums = probe(group.value, group.entry, previous)
            if previous is not None:  # nobody waits for it now; the next call looks whether this step was a jump
                slots.unseen = Unseen(self.checks.add([*sums]), self.index)

    def _look_at_last_call(self) -> None:
        """Tells the policy what was measured in the last call of this branch."""
        measured, read = self.state.measured.pop((self.graph.frame, self.position.branch), ((), None))
        if read is None:
            return
        self.generation.host_reads += not read.ready()
        values = read.values()[: 2 * len(measured)]
        pairs = zip(values[::2], values[1::2], strict=True)
        diffs = [changed / before if before else math.nan for changed, before in pairs]
        for one, diff in zip(measured, diffs, strict=True):
            one.slots.memory.update(diff=diff, span=one.steps, mean=sum(diffs) / len(diffs))

    def _since(self, slots: Slots) -> int:
        """Steps since the last computed one."""
        return self.index - slots.ring[-1].step if slots.ring else 0

    def _view(self, group: Group) -> StepView:
        slots = self.slots(group)
        return StepView(
            self.index, slots.cached, slots.run, group.region, self.graph.regions, slots.memory, self._since(slots)
        )

    def _end_history(self, slots: Slots, step: int) -> None:
        """At a jump: the snapshots of before ``step`` would spoil every forecast after it. Warms up as a generation
        does when it begins."""
        slots.drop_before(step)
        slots.warm_from = step + self.config.warmup_steps

    def _ends_history(self) -> bool:
        return self.policy.ends_history and self.config.residual_diff_threshold < 1  # from 1 on nobody looks

    def _look_for_jump(self, slots: Slots, *, wait: bool) -> None:
        """At the last step that had to be computed whatever had changed."""
        unseen = slots.unseen
        if unseen is None or not (wait or unseen.sums.checks.ready()):
            return
        slots.unseen = None
        self.generation.host_reads += not unseen.sums.checks.ready()
        changed, before = unseen.sums.values()
        if before and math.isfinite(changed / before) and slots.is_jump(changed / before):
            self._end_history(slots, unseen.step)

    def _verdict_without_data(self, group: Group) -> Verdict | None:
        """The verdict, or None when it needs a number from the device."""
        slots = self.slots(group)
        self._look_for_jump(slots, wait=False)
        if not slots.ring:
            return Verdict(False, slots.emptied)
        if not self._learn(group) or (self.policy.lagged and not math.isfinite(slots.memory.get("diff", 0.0))):
            return self._non_finite(slots)
        verdict = self._ask(self.policy.before, self._view(group), self.config)
        if verdict is None or verdict.reuse:
            self._look_for_jump(slots, wait=True)
        if self.index < slots.warm_from:
            return Verdict(False, "warmup")
        if verdict is None:
            return verdict if slots.probe is not None else Verdict(False, "no_snapshot")
        if verdict.reuse and any(not pending.certain for pending in self.state.pending):
            step = self.index
            self.generation.host_reads += not all(pending.read.ready() for pending in self.state.pending)
            self._late_time()
            if self.index != step:
                return self._verdict_without_data(group)
        return self._checked(group, verdict)

    def _read(self, sums: Sequence[Tensor]) -> list[tuple[float, float]]:
        """Waits for pairs of sums (what has changed, what there was), and for a timestep that is on its way."""
        values = HostRead(*sums).values()
        self.generation.host_reads += 1
        if self._time is not None:
            self._late_time()
        return list(zip(values[::2], values[1::2], strict=True))

    def _learn(self, group: Group) -> bool:
        """Tells the policy by how much the last computed step changed the effect; False: it was not finite."""
        slots = self.slots(group)
        read, slots.change = slots.change, None
        if read is None or not self.policy.watches_change:
            return True
        self.generation.host_reads += not read.ready()
        change = relative_change(*read.values())
        if math.isfinite(change):
            self.policy.learn(self._view(group), self.config, change)
        return all(map(math.isfinite, read.values()))

    def _verdict(self, group: Group, diff: float) -> Verdict:
        slots = self.slots(group)
        if not slots.ring:
            return Verdict(False, "no_snapshot")
        if not math.isfinite(diff):
            return self._non_finite(slots)
        verdict = self._ask(self.policy.after, self._view(group), self.config, diff) or Verdict(False, "policy_error")
        if self._ends_history() and slots.is_jump(diff) and not verdict.reuse:
            self._end_history(slots, self.index)
        return self._checked(group, verdict)

    def _checked(self, group: Group, verdict: Verdict) -> Verdict:
        """A verdict to reuse stands only if there are weights to forecast with and all snapshots are finite.

        The transfer of the finiteness checks began when the region was done, one step ago at least.
        """
        if not verdict.reuse:
            return verdict
        slots = self.slots(group)
        try:
            points = [self.point(snapshot.step) for snapshot in slots.ring]
            group.weights = checked_weights(self.forecaster, points, self.point(self.index), self.config)
            if self.state.clock.repeats_times:
                group.weights = damped(group.weights)
        except ForecastError as error:
            if self._first("forecaster_error"):
                log.warning(
                    "dit_cache: the forecaster %r failed, such steps are computed: %s",
                    self.config.forecast,
                    error,
                    exc_info=error.__cause__,
                )
            return Verdict(False, "forecaster_error")
        checks = slots.unchecked()
        self.generation.host_reads += not all(check.checks.ready() for check in checks)
        return verdict if all(check.passed() for check in checks) else self._non_finite(slots)

    def _ask(self, question: Callable[..., Verdict | None], *facts: Any) -> Verdict | None:
        """The policy's answer. A policy that fails costs the step that it was to judge, not the picture."""
        try:
            return question(*facts)
        except Exception:
            if self._first("policy_error"):
                log.exception("dit_cache: the policy %r failed, such steps are computed", self.config.policy)
            return Verdict(False, "policy_error")

    def _non_finite(self, slots: Slots) -> Verdict:
        slots.ring.clear()  # a snapshot that is not finite would spoil every forecast it has a weight in
        slots.memory.clear()
        if self._first("non_finite"):
            log.warning(
                "dit_cache: step %d found a probe that is NaN, infinite or all zero, or a step before it left NaN or "
                "infinity to be reused; such steps are computed. Check latents, prompts and weights: with the cache "
                "off (DIT_CACHE_ENABLED=0) the values are the same",
                self.index,
            )
        return Verdict(False, "non_finite")

    def _first(self, reason: str) -> bool:
        """Whether ``reason`` is new in this generation: said once, not at every step."""
        return all(step.reason != reason for step in self.generation.steps)
