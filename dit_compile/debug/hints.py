"""Why a generation reused nothing, and what would change that."""

from __future__ import annotations

import logging
from collections import Counter

from ..readers import format_bytes
from ..runtime.stats import GenerationStats
from .messages import warn_once

log = logging.getLogger("dit_compile")

MANY = 5  # generations of one step in a row that are spoken of

# What to do where a reason is the most frequent one among the steps that had something to reuse. Reasons that are a
# setting's plain meaning name the setting; those that no setting changes say what happens.
ADVICE = {
    "warmup": "{warmup} steps are warm-up: lower warmup_steps (DIT_CACHE_WARMUP_STEPS) for runs this short",
    "mask": "step_mask (DIT_CACHE_STEP_MASK) has no 0 at these steps",
    "mask_end": "the run is longer than step_mask (DIT_CACHE_STEP_MASK)",
    "plan": "the plan (DIT_CACHE_PLAN) computes every step",
    "plan_mismatch": "the plan (DIT_CACHE_PLAN) is for other runs; stats()[-1].plan says in what this one differs",
    "out_of_family": "differences at the steps that the plan forecasts were far from those that it was made with: it "
    "is for other inputs; plan_guard=0 (DIT_CACHE_PLAN_GUARD) would forecast all the same",
    "interval": "interval (DIT_CACHE_INTERVAL) lets every step be computed",
    "cached_limit": "max_cached_steps (DIT_CACHE_MAX_CACHED_STEPS) allows none",
    "consecutive_limit": "max_continuous_cached_steps (DIT_CACHE_MAX_CONTINUOUS_CACHED_STEPS) allows none",
    "accumulated_limit": "max_accumulated_diff (DIT_CACHE_MAX_ACCUMULATED_DIFF) allows none",
    "threshold": "the smallest difference was {smallest:.4g}, so a residual_diff_threshold "
    "(DIT_CACHE_RESIDUAL_DIFF_THRESHOLD) above {smallest:.4g} would have hit; it is {threshold:g}",
    "not_measured": "the policy measures at a step what it decides at the next: runs this short gain nothing",
    "not_arrived": "the device is slower than the host here, so what a step measures is not there at the next one, and "
    "decision=lagged (DIT_CACHE_DECISION) does not wait for it; decision=exact does, which costs little then",
    "input_changed": "an input besides the latents (a control, a reference, a LoRA scale, a prompt) was another one at "
    "every step. If it does not change, pass the same tensor; if it changes a little, the threshold it is compared "
    "with is residual_diff_threshold (DIT_CACHE_RESIDUAL_DIFF_THRESHOLD)",
    "shape_changed": "latents or prompts had another shape, dtype or device at every step: snapshots fit no other size",
    "absent": "each branch missed every second step, and nothing is forecast over a gap",
    "memory_cap": "max_bytes (DIT_CACHE_MAX_BYTES) leaves no room for a snapshot; everything would take {wanted}",
    "policy_error": "the policy failed at every step, see the error in the log",
    "forecaster_error": "the forecaster failed at every step, see the error in the log; forecast=reuse works without",
    "no_snapshot": "no step found a snapshot: every call was taken for another prompt or another request. Calls of one "
    "run that come from several threads, or tiles of one picture, need a session: dit_compile.session(name, keep=True)",
}


def zero_hit_hint(stats: GenerationStats) -> str | None:
    """Why a generation reused nothing and what would change that; None when it reused something, or was told not to."""
    config = stats.config
    if stats.reused or not stats.steps or not config.enabled or config.residual_diff_threshold == 0:
        return None
    length = 1 + max(step.index for step in stats.steps)
    reasons = Counter(step.reason for step in stats.steps if step.index > 0)
    if not reasons:
        return "the generation had one step, and nothing to reuse"
    reason = "non_finite" if reasons["non_finite"] else reasons.most_common(1)[0][0]
    if reason in ("warmup", "no_snapshot") and reasons["threshold"]:
        reason = "threshold"  # what the steps behind the warm-up were computed for
    if reason == "warmup" and length <= 2:
        return f"nothing was reused in {length} steps: a run this short has nothing to forecast from"
    advice = ADVICE.get(reason)
    if advice is None:
        listed = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
        return f"nothing was reused in {length} steps ({listed})"
    text = advice.format(
        warmup=config.warmup_steps,
        smallest=stats.smallest_threshold() or 0.0,
        threshold=config.residual_diff_threshold,
        wanted=format_bytes(stats.bytes_wanted),
    )
    return f"nothing was reused in {length} steps: {text}"


class OneStepGenerations:
    """Counts generations of one step that follow each other, by module."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()

    def see(self, stats: GenerationStats) -> None:
        """Says once per module that there are many: a model of one step, or calls that are told wrong."""
        if any(step.index > 0 for step in stats.steps):
            self._in_a_row.pop(stats.module, None)
            return
        self._in_a_row[stats.module] += 1
        count = self._in_a_row[stats.module]
        if count >= MANY:
            warn_once(
                f"{stats.module}: {count} generations in a row had one step, and a step cache gains nothing there "
                f"({stats.clock}). If these calls are steps of one run: call them in one session, "
                "dit_compile.session(name, keep=True), where they come from several threads; give num_steps "
                "(DIT_CACHE_NUM_STEPS) where their timesteps do not run one way",
                key=f"one step {stats.module}",
            )
