"""The callable that Dynamo gets for a cached graph."""

from __future__ import annotations

import functools
import itertools
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..config import CacheConfig, ConfigError, resolve
from ..forecast import FORECASTERS, Forecaster
from ..plans import Cut, Plan
from ..policy import POLICIES, Policy
from .call import CallStep
from .clock import Position
from .code import Code, CutCode
from .cuda_graphs import GraphedCode
from .diffusers_hook import announced
from .earlier_frame import forget_inputs, inputs_of_call
from .inputs import Call
from .observer import ObservedCall, Observer, observing
from .planned import PlannedRun, found_in, mismatch
from .region import CallFacts, GraphInfo
from .session import Session, SessionInUse, current_session
from .state import ModuleState
from .stats import GenerationStats
from .table import SideTable
from .tracks import compare_prompt, sample, state_of
from .transfer import Outbox
from .watched import BoundPlaces, StructureChanged, under_way
from .weights import Addresses, Owner, reader

log = logging.getLogger("dit_compile")

_numbers = itertools.count()


class Settings(NamedTuple):
    """What the process-wide ``overrides`` and those of a session resolve to. ``policy`` decides where no plan does."""

    overrides: Mapping[str, Any]
    config: CacheConfig
    policy: Policy
    forecaster: Forecaster


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
        self._frame = code.frame if code.frame is not None else -1 - self.number
        self._guarded = code.cuts[0]
        self._infos = {cut: _info(cut, self._frame) for cut in code.cuts}
        self._warned = self._timeless = False
        self._places = code.places
        self._bound = code.bound if code.bound is not None and code.bound.names else None
        self._complete = _merger(self._bound) if self._bound is not None else None
        self._addresses = reader(code.places.owner)
        self._last: tuple[Addresses, object, Owner] | None = None  # of the last call; its epoch of the table
        self._layers = tuple(layers)
        self._name = code.name
        self._table = table
        self._overrides = overrides

    def __call__(self, *args: Any) -> Any:
        bound = self._bound
        if bound is not None and len(args) < bound.total:
            watched = under_way.get()
            assert watched is not None and self._complete is not None  # who compiled the graph calls it
            args = self._complete((*args, *watched.weights(bound.names)))
        session = current_session(self._table.end_session)
        owner = self._owner(args)
        state = self._table.state(owner, session.name)
        if not state.busy.acquire(blocking=False):
            raise SessionInUse(
                f"session {session.name!r} is in use by another call of this model. A session belongs to one request: "
                "give each request a name of its own, with dit_compile.session(name)"
            )
        try:
            observer = observing.get()
            step, cut = self._begin(args, state, owner, session, observer)
            if observer is not None:
                return observer.call(self._observed(step, cut, owner, args))
            if cut.graphed is None:
                results = cut.forward(step, *args)
            else:
                results = self._run_graphed(cut, cut.graphed, step, owner, args)
            if (planned := step.facts.planned) is not None:
                planned.end_call(step.facts.call.moving, results)
            return results
        except BaseException:
            self._table.forget(owner, session.name)  # a half-done step must not be continued
            raise
        finally:
            state.busy.release()

    def _observed(self, step: CallStep, cut: CutCode, owner: Owner, args: tuple[Any, ...]) -> ObservedCall:
        weights = functools.partial(self._weights, owner, args)
        return ObservedCall(
            step.facts, cut, self._code.structure, owner, weights, lambda other, given: cut.forward(other, *given),
            args, self._places.moving,
        )  # fmt: skip

    def _weights(self, owner: Owner, args: Sequence[Any]) -> str:
        return owner.digest([args[i] for i in self._places.owner])

    def _run_graphed(
        self, cut: CutCode, graphed: GraphedCode, step: CallStep, owner: Owner, args: tuple[Any, ...]
    ) -> Any:
        results, used = graphed.run(self._table.graphs(owner), cut.forward, step, args)
        if (generation := step.facts.state.generation) is not None:
            generation.cuda_graphs = used
        return results

    def _owner(self, args: tuple[Any, ...]) -> Owner:
        """The module that is called: that of the last call, if its weights are the same and none has died since."""
        table, addresses, last = self._table, self._addresses(args), self._last
        if last is not None and last[1] is table.epoch and last[0] == addresses:
            return last[2]
        epoch = table.epoch
        owner = table.owner(addresses, lambda: [args[place] for place in self._places.owner], self.number)
        self._last = (addresses, epoch, owner)
        return owner

    def settings(self, session: Session) -> Settings:
        """Those in force for ``session``. Raises ConfigError where the graph was compiled for another policy's tap."""
        overrides = self._overrides()
        known = session.settings.get(self.number)
        if known is None or known.overrides is not overrides:
            config = resolve(*self._layers, overrides, session.overrides)
            policy = POLICIES.instance(config.guard_policy)
            tap, compiled = policy.tap(config), self._code.cuts[0].tap
            if config.enabled and policy.needs_probe and tap != compiled:
                raise ConfigError(
                    f"policy {config.policy!r} watches {tap!r}, but the graph was compiled to watch "
                    f"{compiled!r}: choose the policy when compiling, "
                    f'torch.compile(..., options={{"policy": "{config.policy}"}})'
                )
            known = Settings(overrides, config, policy, FORECASTERS.instance(config.forecast))
            session.settings[self.number] = known
        return known

    def _begin(
        self, args: Sequence[Any], state: ModuleState, owner: Owner, session: Session, observer: Observer | None
    ) -> tuple[CallStep, CutCode]:
        """Places the call in time and drops what is of no use from there on; says which cut of the graph runs."""
        _, config, policy, forecaster = self.settings(session)
        places, outbox = self._places, Outbox()
        call = self._call(args, state, owner)
        told = state.clock.told
        if told is not None and told() is None:  # the pipeline's loop is gone, and did not say so: it was aborted
            state.release()
            state.clock.told = told = None
        never_waits = config.decision == "lagged" and (policy.lagged or policy.measures(config))
        lags = policy.lagged or never_waits
        measures = policy.measures(config) and not lags and config.plan is None
        blind = not (measures or config.num_steps is not None or told is not None)
        if told is None and state.planned is not None and state.planned.is_last(state.clock.step):
            call.read_time(outbox)  # it tells whether a generation begins
        main, state = state, state_of(state, call, blind=blind)
        position = state.clock.place(call, outbox, cfg=config.cfg, num_steps=config.num_steps, blind=blind)
        begins = position.new_generation or state.generation is None
        if (begins or state.clock.pending) and (watched := under_way.get()) is not None and watched.has_changed():
            raise StructureChanged
        for start in position.restarts:
            state.restart(start)
        if begins:
            self._begin_generation(state, config, call, args, owner, session)
        assert state.generation is not None
        state.generation.host_reads += position.waited
        if position.left or position.new_prompt or position.settled is not None:
            state.follow(position, self._frame)
        if blind:
            compare_prompt(state, call, position)
        if session.default and state is main:
            trail = state.trail  # new: a prompt, or a generation
            if position.changed or position.new_generation or position.branch not in trail.prompts or trail.left:
                self._table.follow(state, owner, call, position)
        if config.batch_decision != "one" and not self._warned:
            self._warn_undivided(config)
        numbers = tuple([float(args[i]) for i in places.numbers])
        planned, cut = state.planned, self._guarded
        if observer is not None:
            planned, cut = None, self._cut_for(observer.cut) or cut
        elif planned is not None:
            planned, cut = self._plan_in_force(planned, state, config, position, call, outbox)
            if planned is not None:
                policy, lags, never_waits = planned.policy, False, False
        facts = CallFacts(
            self._infos[cut], state, position.branch, config, policy, forecaster, call, numbers, outbox, planned, lags,
            never_waits,
        )  # fmt: skip
        return CallStep(facts), cut

    def _plan_in_force(
        self, planned: PlannedRun, state: ModuleState, config: CacheConfig, position: Position, call: Call,
        outbox: Outbox,
    ) -> tuple[PlannedRun | None, CutCode]:  # fmt: skip
        """The plan, if this call goes by it, and the cut that runs."""
        try:
            planned.begin_call(state.clock.step, position.branch, state.clock.times.values, call, outbox)
        except Exception as error:  # nothing that a plan does may cost the user the picture
            if config.strict:
                raise
            log.exception("dit_cache: an unexpected error in looking at the plan. Please report it with this traceback")
            planned.end_with(f"an unexpected error, {type(error).__name__}")
        cut = self._cut_for(planned.part.cut)
        if cut is None or self._code.structure != planned.part.conditions.structure:
            planned.end_with("a call is served by another graph of the model")  # another prompt length, for example
        if cut is None or planned.ended is not None or config.plan is None or not config.enabled:
            return None, self._guarded
        return planned, cut

    def _begin_generation(
        self, state: ModuleState, config: CacheConfig, call: Call, args: Sequence[Any], owner: Owner, session: Session
    ) -> None:
        name = self._table.label(owner, self._name)
        stats = GenerationStats(name, session.name, config, self._clock_source(config), hints=session.hints)
        state.begin_generation(stats, sample(call.moving))
        if config.plan is not None and config.enabled and observing.get() is None:
            try:
                state.planned = self._planned(config, config.plan, stats, call, args, owner)
            except Exception:
                if config.strict:
                    raise
                stats.plan = "not applied: an unexpected error, see the log"
                log.exception(
                    "dit_cache: an unexpected error in looking at the plan. Please report it with this traceback"
                )

    def _planned(
        self, config: CacheConfig, plan: Plan, stats: GenerationStats, call: Call, args: Sequence[Any], owner: Owner
    ) -> PlannedRun | None:
        """The generation that begins with ``call`` under the part of ``plan`` that is for it; None where the plan is of
        no use at all."""
        numbers = tuple([float(args[i]) for i in self._places.numbers])
        weights = self._weights(owner, args)
        found = found_in(call, self._code.structure, weights, numbers)
        problems = [mismatch(part.conditions, found) for part in plan.parts]
        if not problems:
            stats.plan = f"not applied: {plan.problem}"
            self._table.say(plan.source, f"dit_cache: the plan is not applied, the guard decides: {plan.problem}")
            return None
        number = problems.index(None) if None in problems else 0
        part, why = plan.parts[number], problems[number]
        if why is None and self._cut_for(part.cut) is None:
            why = "the model was compiled without it: give the plan to compile, or set DIT_CACHE_PLAN before"
        return PlannedRun(part, f"the plan {plan}", stats, guarded=config.plan_guard, say=self._table.say, ended=why)

    def _cut_for(self, cut: Cut) -> CutCode | None:
        """The compiled cut that a plan for ``cut`` runs on."""
        return next((code for code in self._code.cuts if code.cut == cut and code.tap == "residual"), None)

    def _call(self, args: Sequence[Any], state: ModuleState, owner: Owner) -> Call:
        places = self._places
        given = args[places.timestep] if places.timestep is not None else places.fixed_time
        moving: Sequence[Tensor] = [args[i] for i in places.moving]
        conditioning: Sequence[Tensor] = [args[i] for i in places.conditioning]
        if not places.resumed:
            forget_inputs()
        elif given is None:
            earlier = inputs_of_call(self._frame)
            if earlier is not None:
                given, moving, conditioning = earlier.time, earlier.moving, earlier.conditioning
            else:
                self._warn_timeless()
                state.clock.end()  # nothing tells this call from one for another prompt: compute it
        said = announced()
        context = self._table.context(owner, said) if said is not None else None
        side = [args[i] for i in places.side]
        return Call.at(given, self._frame, moving, conditioning, context, self.number, side)

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
        for places in set(self._code.cuts[0].rows):
            if isinstance(places, str):
                log.warning("dit_cache: batch_decision=%s has no effect here: %s", config.batch_decision, places)
            elif places.whole is not None:
                log.warning(
                    "dit_cache: with batch_decision=%s, blocks run for all rows where one row needs it: %s",
                    config.batch_decision,
                    places.whole,
                )

    def _clock_source(self, config: CacheConfig) -> str:
        if config.num_steps is not None:
            return f"a generation is {config.num_steps} steps (num_steps)"
        places = self._places
        if places.timestep is not None or places.fixed_time is not None or places.resumed:
            return "a generation begins where the timestep jumps back"
        return (
            "a generation begins where the conditioning changes (the model has no timestep input that was recognised)"
        )


def _info(code: CutCode, frame: int) -> GraphInfo:
    rows = tuple(None if isinstance(places, str) else places for places in code.rows)
    return GraphInfo(frame, rows, code.mains, code.signature)


def _merger(bound: BoundPlaces) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Puts what a call passes, followed by the bound weights, in the order of the graph's inputs."""
    taken = set(bound.places)
    passed = [place for place in range(bound.total) if place not in taken]
    at = {place: i for i, place in enumerate([*passed, *bound.places])}
    order = [at[place] for place in range(bound.total)]
    return operator.itemgetter(*order) if len(order) > 1 else tuple
