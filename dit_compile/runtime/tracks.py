"""Trajectories of one prompt that advance together: tiles of a large picture, context windows of a long video.

    for t in times:
        for tile in tiles:
            model(latents[tile], t, prompt)

Nothing but the latents tells such calls apart. They are compared only where the first time of a generation comes again
with the same prompt and with latents that are far from the first ones: then a new request has begun, or a second
trajectory, and the calls at the next two times show which. From then on each trajectory has a state of its own, with a
clock of its own, and a call belongs to the one whose last latents are nearest. Everywhere else one sample of the
latents is taken per generation, and nothing is compared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import Call, mean_time
from .state import ModuleState, Track
from .transfer import Outbox

log = logging.getLogger("dit_compile")

SAMPLE = 1 << 12  # elements of the latents that are compared
FAR = 0.5  # sum |x - y| / sum |y|: independent noise has 1.4, a solver's step or a second evaluation much less
MOST = 64  # trajectories


def sample(moving: Sequence[Tensor]) -> Tensor | None:
    """A copy of some elements of the latents; None where there are none."""
    if not moving:
        return None
    flat = moving[0].detach().reshape(-1)
    return flat[:: max(flat.numel() // SAMPLE, 1)].to(torch.float32, copy=True)


def state_of(main: ModuleState, call: Call) -> ModuleState:
    """The state that ``call`` belongs to: ``main``, as a rule. ``main`` is also that of the first trajectory."""
    if not main.tracks:
        if main.origin is None or not main.clock.is_first_time_again(call):
            return main
        main.tracks, main.current, main.several = [Track(main, main.origin)], 0, False
    current = main.tracks[main.current].state
    if call.moving_id.key == current.clock.moving_key():
        return current  # guidance: a further branch of the same latents
    if call.time is None and call.timestep is not None:
        call.time = Outbox().put([mean_time(call.timestep)]).values()[0]
        for start in current.clock.settle(wait=True):
            current.restart(start)
    assert call.time is not None
    again, times = current.clock.is_first_time_again(call), current.clock.times
    if not again and (times.jumped(call.time) or (current.clock.step == 0 and len(main.tracks) == 1)):
        return _keep(
            main, 0
        )  # the next generation, which is looked at anew; or its second step, now that its time is known
    now = sample(call.moving)
    assert now is not None
    distances = _distances(now, [track.latents for track in main.tracks])
    nearest = min(range(len(distances)), key=distances.__getitem__)
    if again and distances[nearest] >= FAR and len(main.tracks) < MOST:
        nearest = len(main.tracks)
        main.tracks.append(Track(ModuleState(main.history, main.on_end, main.budget), now))
        current.free()  # it may have been a request of one step, and of those there may be many
    elif nearest != main.current:
        _say_several(main)
    elif not main.several and (again or (current.clock.step > 0 and call.time != times.last)):
        return _keep(main, nearest)  # the same start again; or two times have passed, and no other trajectory went on
    main.current, main.tracks[nearest].latents = nearest, now
    return main.tracks[nearest].state


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


def _distances(now: Tensor, known: Sequence[Tensor]) -> list[float]:
    """To each: relative L1 distance, infinite where shapes differ. One transfer."""
    alike = [other for other in known if other.shape == now.shape and other.device == now.device]
    sums = [torch.stack([(now - other).abs().sum(), other.abs().sum()]) for other in alike]
    values = Outbox().put(sums).values() if sums else []
    found = iter(zip(values[::2], values[1::2], strict=True))
    ratios = []
    for other in known:
        changed, before = next(found) if any(other is one for one in alike) else (1.0, 0.0)
        ratios.append(changed / before if before else float("inf"))
    return ratios
