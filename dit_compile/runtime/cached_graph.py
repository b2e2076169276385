"""The callable that Dynamo gets for a cached graph."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import CacheConfig, ConfigError, resolve
from ..policy import POLICIES
from .call import CallStep
from .call_context import GraphFacts
from .clock import Call
from .earlier_frame import forget_inputs, inputs_of_call
from .host_read import HostRead, on_host
from .rows import RowPlaces
from .session import Session, SessionInUse, current_session
from .table import ModuleState, Owner, PendingTime, SideTable

log = logging.getLogger("dit_compile")

_numbers = itertools.count()


@dataclass(frozen=True)
class ClockPlaces:
    """Where the clock's inputs stand in the argument list of the graph."""

    owner: tuple[int, ...]
    moving: tuple[int, ...]
    timestep: int | None
    conditioning: tuple[int, ...]
    side: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    fixed_time: float | None = None  # the time that the graph serves alone, where it has no input for it
    resumed: bool = False  # the graph is what follows a graph break


@dataclass(frozen=True)
class Code:
    """A compiled top-level graph, and what is known of it.

    ``tap`` is what its guards measure. ``rows`` says for each region how rows are taken from its operands, or why they
    cannot be. ``frame`` numbers the function that Dynamo took the graph from; graphs of one function with equal
    ``signature`` share snapshots. None: a graph of its own.
    """

    forward: Callable[..., Any]
    places: ClockPlaces
    name: str
    tap: str
    rows: tuple[RowPlaces | str, ...]
    mains: tuple[int | None, ...]
    frame: int | None = None
    signature: object = None


class CachedGraph:
    """Places each call in time, runs the top-level graph with a ``step``, and keeps the books."""

    def __init__(
        self,
        code: Code,
        layers: Sequence[Mapping[str, Any]],
        table: SideTable,
        overrides: Callable[[], Mapping[str, Any]],
    ) -> None:
        """``layers`` are environment and options as they were when the graph was compiled; ``overrides`` gives the
        process-wide settings of ``configure()``."""
        self.number = next(_numbers)
        self._code = code
        rows = tuple(None if isinstance(places, str) else places for places in code.rows)
        self._frame = code.frame if code.frame is not None else -1 - self.number
        self._facts = GraphFacts(self._frame, rows, code.mains, code.signature)
        self._warned = self._timeless = False
        self._forward = code.forward
        self._places = code.places
        self._weights = _taker(code.places.owner)
        self._layers = tuple(layers)
        self._name = code.name
        self._table = table
        self._overrides = overrides

    def __call__(self, *args: Any) -> Any:
        session = current_session(self._table.end_session)
        owner = self._table.owner(self._weights(args), self.number)
        state = self._table.state(owner, session.name)
        if not state.busy.acquire(blocking=False):
            raise SessionInUse(
                f"session {session.name!r} is in use by another call of this model. A session belongs to one request: "
                "give each request a name of its own, with dit_compile.session(name)"
            )
        try:
            return self._forward(self._begin(args, state, owner, session), *args)
        except BaseException:
            self._table.forget(owner, session.name)  # a half-done step must not be continued
            raise
        finally:
            state.busy.release()

    def config(self, session: Session) -> CacheConfig:
        """The settings in force for ``session``."""
        overrides = self._overrides()
        known = session.configs.get(self.number)
        if known is None or known[0] is not overrides:
            config = resolve(*self._layers, overrides, session.overrides)
            self._check_tap(config)
            known = session.configs[self.number] = (overrides, config)
        return known[1]

    def _check_tap(self, config: CacheConfig) -> None:
        policy = POLICIES.instance(config.policy)
        tap = policy.tap(config)
        if config.enabled and policy.needs_probe and tap != self._code.tap:
            raise ConfigError(
                f"policy {config.policy!r} watches {tap!r}, but the graph was compiled to watch {self._code.tap!r}: "
                f'choose the policy when compiling, torch.compile(..., options={{"policy": "{config.policy}"}})'
            )

    def _begin(self, args: Sequence[Any], state: ModuleState, owner: Owner, session: Session) -> CallStep:
        config = self.config(session)
        self._harvest(state, owner, session, config, wait=False)
        places = self._places
        given = args[places.timestep] if places.timestep is not None else places.fixed_time
        moving, conditioning = [args[i] for i in places.moving], [args[i] for i in places.conditioning]
        if not places.resumed:
            forget_inputs()
        elif given is None:
            earlier = inputs_of_call(self._frame)
            if earlier is not None:
                given, moving, conditioning = earlier.time, earlier.moving, earlier.conditioning
            else:
                self._warn_timeless()
                state.clock.end()  # nothing tells this call from one for another prompt: compute it
        timestep = given if isinstance(given, Tensor) else None
        host = timestep is None or on_host(timestep)
        call = Call(
            frame=self._frame,
            moving=moving,
            timestep=timestep,
            conditioning=conditioning,
            time=None if given is None or not host else _time(given),
            context=self._table.context(owner),
            graph=self.number,
        )
        waited = timestep is not None and state.clock.needs_time(call, cfg=config.cfg)
        if timestep is not None and waited:
            self._harvest(state, owner, session, config, wait=True)
            call = replace(call, time=HostRead(_mean(timestep)).values()[0])
        before = state.clock.step
        position = state.clock.tick(call, cfg=config.cfg, num_steps=config.num_steps)
        if position.new_generation or state.generation is None:
            self._begin_generation(state, owner, session, config)
            state.pending.clear()
        assert state.generation is not None
        state.generation.host_reads += waited
        for frame, branch in position.left:
            state.clear(frame, branch, "absent")  # never forecast over a gap, and hold nothing for what may not return
        if position.new_prompt:
            state.clear(self._frame, position.branch)  # never forecast one prompt from the snapshots of another
        if position.settled is not None:
            state.drop_before(position.branch, position.settled)
        time = None
        if timestep is not None and call.time is None:
            time = HostRead(_mean(timestep))
            branch_call = position.step == before and not position.new_generation
            state.pending.append(PendingTime(position.step, branch_call, position.certain, time))

        def late_time() -> None:
            self._harvest(state, owner, session, config, wait=True)

        side = [args[i] for i in places.side]
        if config.batch_decision != "one" and not self._warned:
            self._warn_undivided(config)
        numbers = tuple(float(args[i]) for i in places.numbers)
        return CallStep(self._facts, state, position, config, side, numbers, time, late_time)

    def _warn_timeless(self) -> None:
        if not self._timeless:
            log.warning(
                "dit_cache: every step of %s is computed: torch broke the graph before its blocks, and the part before "
                "the break, which gets the timestep, was not compiled with this backend. Compile the whole model",
                self._name,
            )
        self._timeless = True

    def _warn_undivided(self, config: CacheConfig) -> None:
        self._warned = True
        for places in set(self._code.rows):
            if isinstance(places, str):
                log.warning("dit_cache: batch_decision=%s has no effect here: %s", config.batch_decision, places)
            elif places.whole is not None:
                log.warning(
                    "dit_cache: with batch_decision=%s, blocks run for all rows where one row needs it: %s",
                    config.batch_decision,
                    places.whole,
                )

    def _harvest(self, state: ModuleState, owner: Owner, session: Session, config: CacheConfig, wait: bool) -> None:
        """Looks at timesteps that have arrived; where one began a generation, its call becomes step 0."""
        while state.pending and (wait or state.pending[0].read.ready()):
            pending = state.pending.popleft()
            if state.clock.late_time(pending.step, pending.branch_call, pending.read.values()[0]):
                self._split_generation(state, owner, session, config, pending.step)

    def _split_generation(
        self, state: ModuleState, owner: Owner, session: Session, config: CacheConfig, start: int
    ) -> None:
        """Moves the steps from ``start`` on into a new generation: its first timestep was read late."""
        old = state.generation
        assert old is not None
        moved = [step for step in old.steps if step.index >= start]
        old.steps = [step for step in old.steps if step.index < start]
        slots = dict(state.slots)
        self._begin_generation(state, owner, session, config)
        assert state.generation is not None
        for step in moved:
            step.index -= start
        state.generation.steps = moved
        for key, kept in slots.items():
            kept.forget_before(start)
            kept.cached, kept.run = 0, 0
            if kept.ring:
                state.slots[key] = kept
        for pending in state.pending:
            pending.step -= start

    def _begin_generation(self, state: ModuleState, owner: Owner, session: Session, config: CacheConfig) -> None:
        self._table.begin_generation(state, owner, self._name, session.name, config)
        assert state.generation is not None
        state.generation.clock = self._clock_source(config)

    def _clock_source(self, config: CacheConfig) -> str:
        if config.num_steps is not None:
            return f"a generation is {config.num_steps} steps (num_steps)"
        places = self._places
        if places.timestep is not None or places.fixed_time is not None or places.resumed:
            return "a generation begins where the timestep jumps back"
        return (
            "a generation begins where the conditioning changes (the model has no timestep input that was recognised)"
        )


def _taker(places: tuple[int, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Takes the values at ``places``: a large model has a thousand weights, which are looked at on every call."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda args: tuple(args[place] for place in places)


def _time(given: Tensor | float) -> float:
    return float(_mean(given)) if isinstance(given, Tensor) else float(given)


def _mean(timestep: Tensor) -> Tensor:
    """One number for the times of all samples, tokens or frames: their mean. It falls at every step of diffusion
    forcing, too, where the first frames run ahead; in float64 the mean of equal times is that time."""
    if timestep.numel() == 1:
        return timestep
    return timestep.mean(dtype=torch.float32 if timestep.device.type == "mps" else torch.float64)
