"""Numbers that earlier steps have sent, taken in at a later one: differences that lagged decisions go by, jumps, and
the changes that policies learn from."""

from __future__ import annotations

import math

from .region import CallFacts, Decision
from .side_inputs import relative_change
from .slots import Slots


def look_at_last_step(facts: CallFacts) -> float:
    """Takes in what the last call of this branch has measured in all regions; the mean of that, 0 where nothing is
    known."""
    state, frame, branch = facts.state, facts.graph.frame, facts.branch
    mine = [slots for key, slots in state.slots.items() if key[0] == frame and key[2] == branch]
    for slots in mine:
        take_measured(facts, slots, wait=not facts.never_waits)
    known = [slots.measured.last for slots in mine]
    diffs = [change.diff for change in known if change is not None and change.step == state.clock.step - 1]
    return sum(diffs) / len(diffs) if diffs else 0.0


def take_measured(facts: CallFacts, slots: Slots, *, wait: bool) -> None:
    """Takes in what steps have measured that did not wait for it, as far as it has arrived (``wait``: all of it). A
    jump ends history; where decisions lag, only if the step would not have been reused for it."""
    config, generation = facts.config, facts.state.generation
    assert generation is not None
    if wait:
        generation.host_reads += not slots.measured.has_arrived()
    while slots.measured.pending and (change := slots.measured.read(wait=wait)) is not None:
        finite = math.isfinite(change.diff)
        if facts.lags and not finite:
            return  # the decision comes across it, and drops everything
        jump = finite and facts.policy.sees_jumps(config) and slots.is_jump(change.diff, change.since)
        if jump and (not facts.lags or change.diff >= config.residual_diff_threshold):
            slots.end_history(change.step, config.warmup_steps)


def learn(facts: CallFacts, decision: Decision) -> bool:
    """Tells the policy by how much the last computed step changed the effect; False: it was not finite."""
    slots, policy, generation = decision.slots, facts.policy, facts.state.generation
    read = slots.change
    assert generation is not None
    if read is None or (facts.never_waits and not read.ready()):
        return True
    slots.change = None
    if not policy.watches_change:
        return True
    generation.host_reads += not read.ready()
    change = relative_change(*read.values())
    if math.isfinite(change):
        policy.learn(decision.view, facts.config, change)
    return read.finite()
