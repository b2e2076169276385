"""Notices when the steps of one generation come from several threads that have no session.

A thread pool runs each step on whichever thread is free, and each thread has a default session of its own, so none of
these sees the whole generation. What one has kept is older than the last step, or of another request, whose steps it
has run in between. Nothing is forecast from that; such a step is computed.

thread 1: prompt P at 1000, 800 .......... 400     a known prompt, and the generation was in thread 2: all is dropped
thread 2:                      P at 600 ...        a prompt that is new here, and known to thread 1 at an earlier time

Threads that each run a request of their own may share prompts: their generations begin at one time, and do not take
turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from .clock import Position
from .inputs import Call, Identity
from .state import ModuleState
from .transfer import Outbox


def follow(state: ModuleState, others: Sequence[ModuleState], call: Call, position: Position) -> bool:
    """Drops what ``call`` must not reuse: it brings a prompt that is new to ``state``, or the generation of ``state``
    seems to have gone on in one of ``others``, those of other threads.

    True: a generation has come from one thread to another for the second time, so it is no coincidence.
    """
    trail, branch = state.trail, position.branch
    if position.new_generation:
        trail.prompts, trail.left, trail.moves = {}, {}, 0
    new_prompt = position.changed or branch not in trail.prompts
    before, left = trail.prompts.get(branch), trail.left.pop(branch, None)
    trail.prompts[branch] = call.prompt_id
    sources = [(other, number) for other in others for number in _branches_of(call, other)]
    behind = [(other, number) for other, number in sources if _is_behind(other, call)]
    # where the thread has gone on without that branch, with another request, its times tell nothing of the branch
    behind += [(other, number) for other, number in sources if not other.clock.has_served(number)]
    if new_prompt:
        if behind or left is not None or (others and before is not None and _is_alive(before)):
            state.drop(branch)
    elif left is not None and _is_after(call, left, state):
        state.drop(branch)
    else:
        return False
    if call.time is None:
        return False
    for source, number in behind:
        source.trail.left[number] = call.time
        trail.moves = max(trail.moves, source.trail.moves + 1)
    return bool(behind) and trail.moves > 1


def _branches_of(call: Call, other: ModuleState) -> list[int]:
    """The branches of ``other`` that have the prompt of ``call``."""
    return [branch for branch, prompt in list(other.trail.prompts.items()) if prompt.key == call.prompt_id.key]


def _is_alive(prompt: Identity) -> bool:
    """Its request may be under way; of models that get new tensors at every step, the last ones are dead."""
    return bool(prompt.references) and all(reference() is not None for reference in prompt.references)


def _is_behind(other: ModuleState, call: Call) -> bool:
    """Whether the last call that the thread of ``other``, which may be in one now, has finished was at an earlier step
    than ``call``."""
    late = [one for one in list(other.clock.pending) if one.ticket.parcel.sent]
    return _is_after(call, late[-1].ticket.values()[0] if late else other.clock.times.last, other)


def _is_after(call: Call, last: float | None, known: ModuleState) -> bool:
    """Whether ``call`` is at a later step than ``last`` in a generation whose times run as those of ``known``."""
    call.read_time(Outbox())
    if call.time is None or last is None:
        return False
    direction = known.clock.times.direction
    return (call.time - last) * direction > 0 if direction else call.time != last
