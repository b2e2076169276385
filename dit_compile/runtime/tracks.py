"""Which trajectory a call belongs to, where the clock alone cannot tell.

Tiles of a large picture and context windows of a long video are trajectories of one prompt that advance together:

    for t in times:
        for tile in tiles:
            model(latents[tile], t, prompt)

Nothing but the latents tells such calls apart. They are compared only where the first time of a generation comes again
with the same prompt and with latents that are far from the first ones: then a new request has begun, or a second
trajectory, and the calls at the next two times show which. From then on each trajectory has a state of its own, with a
clock of its own, and a call belongs to the one whose last latents are nearest.

Reuse is *blind* where the policy measures nothing and nobody says when a generation ends. Then latents and prompts are
compared at every call: a step of a solver moves the latents a little, another request's are elsewhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .clock import Position
from .inputs import Call
from .side_inputs import relative_change, thinned
from .state import ModuleState, Prompt, Track
from .transfer import Outbox

log = logging.getLogger("dit_compile")

SAMPLE = 1 << 12  # elements that are compared of each tensor
FAR = 0.5  # sum |x - y| / sum |y|: independent noise has 1.4, a second evaluation of a solver much less
OWN = 0.8  # from step to step in one of several trajectories: the nearest must be nearer than this
ELSEWHERE = 1.0  # the same from step to step: half of all steps at once, from pure noise on, has 0.7
MOST = 64  # trajectories
MOST_STARTS = 16  # the same while they may as well be requests of one step
MOST_PROMPTS = 8  # whose last latents are kept


def sample(moving: Sequence[Tensor]) -> Tensor | None:
    """A copy of some elements of the latents; None where there are none."""
    return _sample(moving[0]) if moving else None


def state_of(main: ModuleState, call: Call, *, blind: bool = False) -> ModuleState:
    """The state that ``call`` belongs to: ``main``, as a rule. ``main`` is also that of the first trajectory."""
    state = main
    if main.tracks or (main.clock.step == 0 and main.origin is not None and main.clock.is_first_time_again(call)):
        state = _track_of(main, call)
    if blind and call.moving and call.moving_id.key != state.clock.moving.key:
        _compare_latents(state, call)
    return state


def _compare_latents(state: ModuleState, call: Call) -> None:
    """Ends the generation where the latents are far from those of the last call of this prompt (of any prompt, where
    this one has tensors that were not seen before)."""
    now, prompt = _sample(call.moving[0]), call.prompt_id.key
    if state.clock.step >= 0:
        known = [state.latest[prompt]] if prompt in state.latest else state.latest.values()
        before = [sample for one in known for sample in one.samples]
        # calls of one step may differ in size, and NaN proves nothing
        moved = min(filter(math.isfinite, _distances([now] * len(before), before)), default=0.0)
        if moved >= ELSEWHERE and not _is_of_this_step(state, call):
            state.clock.end()
    if state.clock.step < 0:
        state.latest.clear()
    state.latest.pop(prompt, None)
    state.latest[prompt] = Prompt(call.prompt_id, [now])
    if len(state.latest) > MOST_PROMPTS:
        del state.latest[next(iter(state.latest))]


def _is_of_this_step(state: ModuleState, call: Call) -> bool:
    """Whether ``call`` is at the time of the last one: with another prompt it may have latents of its own."""
    _wait_for_time(state, call)
    return call.time is not None and call.time == state.clock.times.last


def _wait_for_time(state: ModuleState, call: Call) -> None:
    if call.time is None:
        call.read_time(Outbox())
        for start in state.clock.settle(wait=True):
            state.restart(start)


def compare_prompt(state: ModuleState, call: Call, position: Position) -> None:
    """Drops the snapshots of a branch whose prompt has other tensors than at its last call, unless they hold the same.

    Inputs that move with the latents, those of a ControlNet, may be among them.
    """
    place = (call.frame, position.branch)
    known = state.prompts.get(place)
    if known is not None and known.identity.key == call.prompt_id.key:
        return
    samples = [_sample(tensor) for tensor in call.conditioning if tensor.is_floating_point()]
    if known is not None and position.changed and not position.new_prompt:
        others = len(known.samples) != len(samples)
        if others or any(distance >= FAR for distance in _distances(samples, known.samples)):
            state.drop(position.branch, call.frame, why="input_changed")
    state.prompts[place] = Prompt(call.prompt_id, samples)


def _track_of(main: ModuleState, call: Call) -> ModuleState:
    if not main.tracks:
        assert main.origin is not None
        main.tracks, main.current, main.several = [Track(main, main.origin)], 0, False
    current = main.tracks[main.current].state
    if call.moving_id.key == current.clock.moving.key:
        return current  # guidance: a further branch of the same latents
    _wait_for_time(current, call)
    assert call.time is not None
    again, times = current.clock.is_first_time_again(call), current.clock.times
    if not again and (times.jumped(call.time) or (current.clock.step == 0 and len(main.tracks) == 1)):
        return _keep(main, 0)  # the next generation; or the second step, now that its time is known
    now = _sample(call.moving[0])
    distances = _distances([now] * len(main.tracks), [track.latents for track in main.tracks])
    nearest = min(range(len(distances)), key=distances.__getitem__)
    if distances[nearest] >= (FAR if again else OWN):
        current.free()  # it may have been a request of one step, and of those there may be many
        return _begin_track(main, now)
    if nearest != main.current:
        _say_several(main)
    elif not main.several and (again or (current.clock.step > 0 and call.time != times.last)):
        return _keep(main, nearest)  # the same start again; or two times have passed, and no other trajectory went on
    main.current, main.tracks[nearest].latents = nearest, now
    return main.tracks[nearest].state


def _begin_track(main: ModuleState, latents: Tensor) -> ModuleState:
    if len(main.tracks) == (MOST if main.several else MOST_STARTS):
        main.tracks.pop(1).state.release()  # the oldest but main, which the table knows
    main.tracks.append(Track(ModuleState(main.history, main.on_end, main.budget), latents))
    main.current = len(main.tracks) - 1
    return main.tracks[-1].state


def _say_several(main: ModuleState) -> None:
    if not main.several:
        log.warning(
            "dit_cache: one prompt is denoised along %d trajectories at once (tiles, context windows): they are told "
            "apart by their latents, and each has snapshots of its own. On a GPU the host waits for that at every "
            "call; a session for each trajectory avoids it: dit_compile.session(name, keep=True)",
            len(main.tracks),
        )
    main.several = True


def _keep(main: ModuleState, number: int) -> ModuleState:
    """Ends all trajectories but one, which becomes ``main``."""
    states = [track.state for track in main.tracks]
    main.tracks = []
    for state in states:
        if state is not states[number]:
            state.release()
    if number:
        main.take_over(states[number])
    return main


def _sample(tensor: Tensor) -> Tensor:
    return thinned(tensor, SAMPLE).to(torch.float32, copy=True)


def _distances(now: Sequence[Tensor], before: Sequence[Tensor]) -> list[float]:
    """Of each pair: relative L1 distance, infinite where shapes differ. One transfer."""
    pairs = list(zip(now, before, strict=True))
    alike = [one.shape == other.shape and one.device == other.device for one, other in pairs]
    sums = [
        torch.stack([(one - other).abs().sum(), other.abs().sum()])
        for (one, other), fits in zip(pairs, alike, strict=True)
        if fits
    ]
    values = Outbox().put(sums).values() if sums else []
    ratios = map(relative_change, values[::2], values[1::2])
    return [next(ratios) if fits else math.inf for fits in alike]
