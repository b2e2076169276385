"""One call of a model: what the guards of its regions decide."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..forecast import ForecastError, checked_weights, damped
from ..kernels.probe import probe, residual_of
from ..policy import StepView, Verdict
from .region import CallFacts, Decision, RegionCall
from .rows import WHOLE, Rows, row_groups
from .side_inputs import SideInputs, relative_change
from .slots import Measured, Slots
from .state import SharedDiff
from .stats import GenerationStats

log = logging.getLogger("dit_compile")


@dataclass
class CallStep:
    """The ``step`` that the top-level graph is called with."""

    facts: CallFacts

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> RegionCall:
        """Decides about ``region``; ``value - entry`` is the effect of its front blocks."""
        self._look_at_state()
        facts = self.facts
        config, places = facts.config, facts.graph.rows[region]
        if facts.policy.lagged and region == 0 and config.enabled:
            facts.state.tell_measured(facts.graph.frame, facts.branch)
        divided = config.batch_decision != "one" and places is not None and config.enabled
        rows: Sequence[Rows] = row_groups(config.batch_decision, value.shape[0]) if divided else (WHOLE,)
        decisions = [self._begin(region, number, part, entry, value) for number, part in enumerate(rows)]
        undecided = [decision for decision in decisions if decision.verdict is None]
        if undecided:
            self._decide_with_data(undecided)
        if config.enabled:
            for decision in decisions:
                self._measure(decision)
        return RegionCall(facts, decisions, places)

    def _look_at_state(self) -> None:
        """Which step this is; a time that arrives late may change that."""
        state = self.facts.state
        assert state.generation is not None
        self._step: int = state.clock.step
        self._points: list[int] = state.clock.times.points
        self._generation: GenerationStats = state.generation

    def _begin(self, region: int, number: int, rows: Rows, entry: Tensor | None, value: Tensor) -> Decision:
        """The rows that decide together, with their verdict if it needs no number from the device."""
        facts = self.facts
        place = (facts.graph.frame, region, facts.branch, number)
        slots = facts.state.slots.get(place)
        if slots is None:  # not setdefault: it would make a new one at every call
            slots = facts.state.slots[place] = Slots()
        if rows is not WHOLE:
            value, entry = rows.of(value), rows.of(entry) if entry is not None else None
        key = (
            value.shape, value.dtype, value.device, torch.is_inference_mode_enabled(), facts.call.shapes,
            facts.graph.signature,
        )  # fmt: skip
        if not facts.config.enabled:
            return Decision(region, number, rows, slots, key, value, entry, Verdict(False, "disabled"))
        if slots.key is not None and slots.key != key:
            same_code = slots.key[-1] == key[-1]
            slots.drop("shape_changed" if same_code else "no_snapshot")
            if not same_code:
                slots.side = SideInputs()  # other code, other inputs
        if slots.numbers not in (None, facts.numbers):
            slots.drop("input_changed")  # another LoRA weight, say: never mix snapshots of before and after
        slots.numbers, slots.key = facts.numbers, key
        every = facts.config.downsample_factor
        if every > 1:
            value, entry = value[..., ::every], entry[..., ::every] if entry is not None else None
        decision = Decision(region, number, rows, slots, key, value, entry)
        decision.verdict = self._verdict_without_data(decision)
        if facts.policy.lagged:
            decision.diff = slots.memory.get("estimate")
        return decision

    def _verdict_without_data(self, decision: Decision) -> Verdict | None:
        """The verdict, or None when it needs a number from the device."""
        slots, policy = decision.slots, self.facts.policy
        if slots.measured is not None:
            self._look_for_jump(slots, wait=False)
        if not slots.ring:
            return Verdict(False, slots.emptied)
        decision.view = StepView(
            self._step, slots.cached, slots.run, decision.region, len(self.facts.graph.rows), slots.memory,
            self._step - slots.ring[-1].step,
        )  # fmt: skip
        if slots.change is not None and not self._learn(decision):
            return self._non_finite(slots)
        if policy.lagged and not math.isfinite(slots.memory.get("diff", 0.0)):
            return self._non_finite(slots)
        verdict = self._ask(policy.before, decision.view, self.facts.config)
        if slots.measured is not None and (verdict is None or verdict.reuse):
            self._look_for_jump(slots, wait=True)
        if self._step < slots.warm_from:
            return Verdict(False, "warmup")
        if verdict is None:
            return None if slots.probe is not None else Verdict(False, "no_snapshot")
        clock = self.facts.state.clock
        if verdict.reuse and clock.pending and not clock.is_certain():
            step = self._step
            self._settle()
            if self._step != step:
                return self._verdict_without_data(decision)
        return self._checked(decision, verdict)

    def _decide_with_data(self, decisions: Sequence[Decision]) -> None:
        """One transfer for all of ``decisions``, but for those that take over what another branch has measured."""
        facts, step = self.facts, self._step
        if facts.config.cfg_decision == "shared":
            decisions = [decision for decision in decisions if not self._take_shared(decision)]
        sums: list[Tensor] = []
        counts: list[int | None] = []
        for decision in decisions:
            slots = decision.slots
            decision.residual, own = probe(decision.value, decision.entry, _previous_probe(decision))
            side: list[Tensor] | None = []
            if facts.call.side and (slots.side.known is None or slots.side.known.key != facts.call.side_id.key):
                side = slots.side.compare(facts.call, decision.rows)
            counts.append(None if side is None else len(side))
            sums += [own, *(side or ())]
        if not decisions:
            return
        values = facts.outbox.put(sums).values()
        self._generation.host_reads += 1
        self._settle()  # a time that came along
        pairs = iter(zip(values[::2], values[1::2], strict=True))
        for decision, count in zip(decisions, counts, strict=True):
            changed, before = next(pairs)
            decision.diff = changed / before if before else math.nan
            side_diffs = [relative_change(*next(pairs)) for _ in range(count or 0)]
            self._decide(decision, step, count is not None, side_diffs)

    def _decide(self, decision: Decision, step: int, side_known: bool, side_diffs: list[float]) -> None:
        assert decision.diff is not None
        if self._step != step:  # a timestep that came along has begun a new generation: its warm-up comes first
            decision.verdict = self._verdict_without_data(decision)
            if decision.verdict is not None:
                return
        facts = self.facts
        if facts.config.cfg_decision == "shared":
            facts.state.diffs[self._shared_key(decision)] = SharedDiff(self._step, facts.branch, decision.diff)
        verdict = self._verdict(decision, decision.diff)
        threshold = facts.config.residual_diff_threshold
        if verdict.reuse and any(map(math.isnan, side_diffs)):
            verdict = self._non_finite(decision.slots)
        elif verdict.reuse and not (side_known and all(diff < threshold for diff in side_diffs)):
            verdict = Verdict(False, "input_changed")
        decision.verdict = verdict

    def _take_shared(self, decision: Decision) -> bool:
        shared = self.facts.state.diffs.get(self._shared_key(decision))
        if shared is None or shared.step != self._step or shared.branch == self.facts.branch:
            return False
        decision.diff = shared.diff
        decision.verdict = self._verdict(decision, shared.diff)
        return True

    def _shared_key(self, decision: Decision) -> tuple[int, int, int]:
        return (self.facts.graph.frame, decision.region, decision.number)

    def _verdict(self, decision: Decision, diff: float) -> Verdict:
        slots, policy = decision.slots, self.facts.policy
        if not slots.ring:
            return Verdict(False, "no_snapshot")
        if not math.isfinite(diff):
            return self._non_finite(slots)
        verdict = self._ask(policy.after, decision.view, self.facts.config, diff) or Verdict(False, "policy_error")
        if self._sees_jumps() and slots.is_jump(diff, decision.view.since) and not verdict.reuse:
            slots.end_history(self._step, self.facts.config.warmup_steps)
        return self._checked(decision, verdict)

    def _checked(self, decision: Decision, verdict: Verdict) -> Verdict:
        """A verdict to reuse stands only if there are weights to forecast with and all snapshots are finite.

        The transfer of the finiteness checks began when the region was done, one step ago at least.
        """
        if not verdict.reuse:
            return verdict
        slots, facts, points = decision.slots, self.facts, self._points
        try:
            now, before = points[self._step], [points[snapshot.step] for snapshot in slots.ring]
            decision.weights = checked_weights(facts.forecaster, before, now, facts.config)
            if facts.state.clock.times.repeats:
                decision.weights = damped(decision.weights)
        except ForecastError as error:
            if self._first("forecaster_error"):
                log.warning(
                    "dit_cache: the forecaster %r failed, such steps are computed: %s", facts.config.forecast, error,
                    exc_info=error.__cause__,
                )  # fmt: skip
            return Verdict(False, "forecaster_error")
        known, waited = slots.is_finite()
        self._generation.host_reads += waited
        return verdict if known else self._non_finite(slots)

    def _measure(self, decision: Decision) -> None:
        """Measures what the policy will want to compare with at a later step."""
        facts, verdict, slots = self.facts, decision.verdict, decision.slots
        policy = facts.policy
        assert verdict is not None
        slots.key = decision.key
        if policy.lagged:
            previous = _previous_probe(decision)
        elif decision.residual is None and policy.needs_probe and (not verdict.reuse or policy.reference == "previous"):
            looks = bool(slots.ring) and not verdict.reuse and self._sees_jumps()
            previous = _previous_probe(decision) if looks else None
        else:
            return
        if previous is None:
            decision.residual = residual_of(decision.value, decision.entry)
            return
        decision.residual, sums = probe(decision.value, decision.entry, previous)
        if slots.ring:  # nobody waits for it now; the next call looks
            slots.measured = Measured(facts.outbox.put([sums]), self._step, self._step - slots.ring[-1].step)

    def _look_for_jump(self, slots: Slots, *, wait: bool) -> None:
        """At the last step that had to be computed whatever had changed."""
        measured = slots.measured
        if measured is None or self.facts.policy.lagged or not (wait or measured.sums.ready()):
            return
        slots.measured = None
        self._generation.host_reads += not measured.sums.ready()
        diff = measured.sums.ratio()
        if math.isfinite(diff) and slots.is_jump(diff, measured.since):
            slots.end_history(measured.step, self.facts.config.warmup_steps)

    def _learn(self, decision: Decision) -> bool:
        """Tells the policy by how much the last computed step changed the effect; False: it was not finite."""
        slots, policy = decision.slots, self.facts.policy
        read, slots.change = slots.change, None
        if read is None or not policy.watches_change:
            return True
        self._generation.host_reads += not read.ready()
        change = relative_change(*read.values())
        if math.isfinite(change):
            policy.learn(decision.view, self.facts.config, change)
        return read.finite()

    def _sees_jumps(self) -> bool:
        return self.facts.policy.ends_history and self.facts.policy.measures(self.facts.config)

    def _settle(self) -> None:
        """Waits for the times that are on their way; one of them may have begun a generation."""
        state = self.facts.state
        if not state.clock.pending:
            return
        self._generation.host_reads += not all(late.ticket.ready() for late in state.clock.pending)
        for start in state.clock.settle(wait=True):
            state.restart(start)
        self._look_at_state()

    def _ask(self, question: Callable[..., Verdict | None], *facts: Any) -> Verdict | None:
        """The policy's answer. A policy that fails costs the step that it was to judge, not the picture."""
        try:
            return question(*facts)
        except Exception:
            if self._first("policy_error"):
                log.exception("dit_cache: the policy %r failed, such steps are computed", self.facts.config.policy)
            return Verdict(False, "policy_error")

    def _non_finite(self, slots: Slots) -> Verdict:
        slots.drop()  # a snapshot that is not finite would spoil every forecast it has a weight in
        if self._first("non_finite"):
            log.warning(
                "dit_cache: step %d found a probe that is NaN, infinite or all zero, or a step before it left NaN or "
                "infinity to be reused; such steps are computed. Check latents, prompts and weights: with the cache "
                "off (DIT_CACHE_ENABLED=0) the values are the same",
                self._step,
            )
        return Verdict(False, "non_finite")

    def _first(self, reason: str) -> bool:
        """Whether ``reason`` is new in this generation: said once, not at every step."""
        return all(step.reason != reason for step in self._generation.steps)


def _previous_probe(decision: Decision) -> Tensor | None:
    """The probe to compare with, where there is one of this shape."""
    known = decision.slots.probe
    return known if known is not None and known.shape == decision.value.shape else None
