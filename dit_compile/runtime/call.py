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
from .arrivals import learn, look_at_last_step, take_measured
from .measured import Measured
from .probe_distance import measure_way, moment
from .region import CallFacts, Decision, RegionCall, planned_weights
from .rows import WHOLE, Rows, row_groups
from .side_inputs import SideInputs, relative_change
from .slots import Slots
from .state import SharedDiff
from .stats import GenerationStats

log = logging.getLogger("dit_compile")


@dataclass
class CallStep:
    """The ``step`` that the top-level graph is called with."""

    facts: CallFacts
    mean: float = 0.0  # of the differences that the last step has measured, where decisions lag

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> RegionCall:
        """Decides about ``region``; ``value - entry`` is the effect of its front blocks."""
        self._look_at_state()
        facts = self.facts
        config, places = facts.config, facts.graph.rows[region]
        if facts.planned is not None and region == 0 and facts.planned.wants_to_know(self._step):
            self._generation.host_reads += not facts.planned.knows()
            self._settle()
            facts.planned.compare_all(facts.state.clock.times.values)
        if facts.lags and region == 0 and config.enabled:
            self.mean = look_at_last_step(facts)
        divided = config.batch_decision != "one" and places is not None and config.enabled and facts.planned is None
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
        if (slots := facts.state.slots.get(place)) is None:  # not setdefault: it would make a new one at every call
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
                if facts.state.planned is not None:  # which has ended: the guard begins here
                    slots.warm_from = self._step + facts.config.warmup_steps
        if slots.numbers not in (None, facts.numbers):
            slots.drop("input_changed")  # another LoRA weight, say: never mix snapshots of before and after
        slots.numbers, slots.key = facts.numbers, key
        every = facts.config.downsample_factor
        if every > 1:
            value, entry = value[..., ::every], entry[..., ::every] if entry is not None else None
        decision = Decision(region, number, rows, slots, key, value, entry)
        decision.verdict = self._verdict_without_data(decision)
        if facts.policy.lagged and slots.ring:
            decision.diff = decision.view.expected
        return decision

    def _verdict_without_data(self, decision: Decision) -> Verdict | None:
        """The verdict, or None when it needs a number from the device."""
        slots, policy, lags = decision.slots, self.facts.policy, self.facts.lags
        if not lags and slots.measured.pending:
            take_measured(self.facts, slots, wait=False)
        if not slots.ring:
            return Verdict(False, slots.emptied)
        decision.view = StepView(
            self._step, slots.cached, slots.run, decision.region, len(self.facts.graph.rows), slots.memory,
            self._step - slots.ring[-1].step,
            slots.measured.expected(self._step, self._since(slots), evenly=policy.lagged) if lags else None, self.mean,
        )  # fmt: skip
        if slots.change is not None and not learn(self.facts, decision):
            return self._non_finite(slots)
        if lags and slots.measured.last is not None and not math.isfinite(slots.measured.last.diff):
            return self._non_finite(slots)
        verdict = self._ask(policy.before, decision.view, self.facts.config)
        if not lags and slots.measured.pending and (verdict is None or verdict.reuse):
            take_measured(self.facts, slots, wait=True)
        if self._step < slots.warm_from:
            return Verdict(False, "warmup")
        if verdict is None and (slots.probe is None or not lags):
            return None if slots.probe is not None else Verdict(False, "no_snapshot")
        verdict = verdict or self._verdict_expected(decision)
        if verdict.reuse and self.facts.never_waits and (unknown := slots.unknown(self.facts.call)):
            return Verdict(False, unknown)
        clock = self.facts.state.clock
        if verdict.reuse and clock.pending and not clock.is_certain():
            step = self._step
            self._settle()
            if self._step != step:
                return self._verdict_without_data(decision)
        return self._checked(decision, verdict)

    def _since(self, slots: Slots) -> int:
        """Steps between this one and the one that its probe is compared with."""
        return self._step - slots.ring[-1].step if self.facts.policy.reference == "computed" else 1

    def _verdict_expected(self, decision: Decision) -> Verdict:
        """The verdict by the difference that is expected after what the last step has measured."""
        shared = self._shared_diff(decision)
        decision.diff = decision.view.expected if shared is None else shared
        if decision.diff is None:
            return Verdict(False, "not_arrived" if decision.slots.measured.pending else "not_measured")
        if shared is None:
            self._share(decision, decision.diff)
        return self._answer(decision, decision.diff)

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
            if facts.forecaster.follows_probe:
                decision.way = measure_way(slots, decision.residual, facts.outbox)
            side: list[Tensor] | None = []
            if slots.side.has_changed(facts.call):
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
        self._share(decision, decision.diff)
        verdict = self._verdict(decision, decision.diff)
        threshold = self.facts.config.residual_diff_threshold
        if verdict.reuse and any(map(math.isnan, side_diffs)):
            verdict = self._non_finite(decision.slots)
        elif verdict.reuse and not (side_known and all(diff < threshold for diff in side_diffs)):
            verdict = Verdict(False, "input_changed")
        decision.verdict = verdict

    def _take_shared(self, decision: Decision) -> bool:
        diff = self._shared_diff(decision)
        if diff is None:
            return False
        decision.diff = diff
        decision.verdict = self._verdict(decision, diff)
        return True

    def _shared_diff(self, decision: Decision) -> float | None:
        """The difference that another branch has decided this step by, where branches share it."""
        shared = self.facts.state.diffs.get((self.facts.graph.frame, decision.region, decision.number))
        others = shared is not None and shared.step == self._step and shared.branch != self.facts.branch
        return shared.diff if shared is not None and others else None

    def _share(self, decision: Decision, diff: float) -> None:
        if self.facts.config.cfg_decision == "shared":
            place = (self.facts.graph.frame, decision.region, decision.number)
            self.facts.state.diffs[place] = SharedDiff(self._step, self.facts.branch, diff)

    def _verdict(self, decision: Decision, diff: float) -> Verdict:
        slots = decision.slots
        if not slots.ring:
            return Verdict(False, "no_snapshot")
        if not math.isfinite(diff):
            return self._non_finite(slots)
        verdict = self._answer(decision, diff)
        if (
            self.facts.policy.sees_jumps(self.facts.config)
            and slots.is_jump(diff, decision.view.since)
            and not verdict.reuse
        ):
            slots.end_history(self._step, self.facts.config.warmup_steps)
        return self._checked(decision, verdict)

    def _answer(self, decision: Decision, diff: float) -> Verdict:
        after = self.facts.policy.after
        return self._ask(after, decision.view, self.facts.config, diff) or Verdict(False, "policy_error")

    def _checked(self, decision: Decision, verdict: Verdict) -> Verdict:
        """A verdict to reuse stands only if there are weights to forecast with and all snapshots are finite.

        The transfer of the finiteness checks began when the region was done, one step ago at least.
        """
        if not verdict.reuse:
            return verdict
        slots, facts = decision.slots, self.facts
        if facts.planned is not None:
            planned = planned_weights(facts, facts.planned, decision)
            if planned is None:
                return Verdict(False, "plan_mismatch")
            decision.weights = planned
        else:
            try:
                decision.weights = self._forecast_weights(decision)
            except ForecastError as error:
                if self._first("forecaster_error"):
                    log.warning(
                        "dit_cache: the forecaster %r failed, such steps are computed: %s", facts.config.forecast,
                        error, exc_info=error.__cause__,
                    )  # fmt: skip
                return Verdict(False, "forecaster_error")
        known, waited = slots.is_finite(wait=facts.planned is None)
        self._generation.host_reads += waited
        return verdict if known else self._non_finite(slots)

    def _forecast_weights(self, decision: Decision) -> list[list[float]]:
        """The forecaster's weights, for each value that leaves the region."""
        facts, slots, points = self.facts, decision.slots, self._points
        now, before = points[self._step], [points[snapshot.step] for snapshot in slots.ring]
        at = now if decision.way is None else moment(slots, decision.way, before, now)
        weights = checked_weights(facts.forecaster, before, at, facts.config)
        if facts.state.clock.times.repeats:
            weights = damped(weights)
        main = facts.graph.mains[decision.region] if facts.config.forecast_streams == "main" else None
        if main is None:
            return [weights] * len(slots.outputs)
        latest = [0.0] * (len(weights) - 1) + [1.0]
        return [weights if i == main else latest for i in range(len(slots.outputs))]

    def _measure(self, decision: Decision) -> None:
        """Measures what the policy will want to compare with at a later step."""
        facts, verdict, slots = self.facts, decision.verdict, decision.slots
        policy = facts.policy
        assert verdict is not None
        slots.key = decision.key
        if facts.lags:
            previous = _previous_probe(decision)
        elif decision.residual is None and policy.needs_probe and (not verdict.reuse or policy.reference == "previous"):
            looks = bool(slots.ring) and not verdict.reuse and policy.sees_jumps(facts.config)
            previous = _previous_probe(decision) if looks else None
        else:
            return
        if previous is None:
            decision.residual = residual_of(decision.value, decision.entry)
            return
        decision.residual, sums = probe(decision.value, decision.entry, previous)
        if slots.ring:  # nobody waits for it now; the next call looks
            slots.measured.pending.append(Measured(facts.outbox.put([sums]), self._step, self._since(slots)))

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
