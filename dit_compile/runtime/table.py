"""The side table: everything that must live from one denoising step to the next."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .clock import Position
from .diffusers_hook import Announced, Run, run_under_way
from .fork import free_in_child, tell_in_child
from .inputs import Call
from .session import session_here
from .state import ModuleState
from .stats import GenerationStats
from .trail import follow
from .weights import Known, Owner, Weights, tensors_of

log = logging.getLogger("dit_compile")

BRIEF = 3  # modules of one graph, one after the other, that lived for no more than a step


class SideTable:
    """Keys state by module and session.

    A module is known by the identity of its weights, because Dynamo hands one compiled graph to all modules of the same
    class and shape, and copies may share all weights but one. When a weight dies, its module's state goes. A forked
    child begins with an empty table.
    """

    def __init__(self, on_end: Callable[[GenerationStats], None]) -> None:
        self._on_end = on_end
        self._lock = free_in_child(threading.RLock())
        self._said: set[object] = set()
        self._begin()
        tell_in_child(self, SideTable._begin)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._states: dict[tuple[Owner, str], ModuleState] = {}
        self._known: dict[Owner, Known] = {}
        self._owners: dict[Owner, Owner] = {}  # weights of a graph -> weights of the first graph of the same module
        self._brief: dict[int, int] = {}  # graph -> how many of its modules, up to the last one, lived for one step
        self._labels: dict[Owner, str] = {}  # of modules that have state

    def owner(self, parameters: Sequence[Tensor], graph: int) -> Owner:
        """The key of the module that has ``parameters``; of a model without any, the graph stands in."""
        key = tuple(map(id, parameters)) or (-graph - 1,)
        owner = self._owners.get(key)
        if owner is None:
            with self._lock:
                weights = Weights.of(parameters)
                # a copy: what dies in between, by garbage collection in this thread, is taken out of the table
                same = (owner for owner, known in list(self._known.items()) if known.weights.are_those_of(weights))
                owner = self._owners.setdefault(key, next(same, key))
                known = self._known.setdefault(owner, Known(weights, graph))
                known.weights.buffers.update(weights.buffers)
                for parameter in parameters:  # any of them may be the one that tells two modules apart
                    if id(parameter) in weights.fixed:
                        weakref.finalize(parameter, self._drop, key).atexit = False
            if self._brief.get(graph, 0) >= BRIEF:
                self._say_replaced(graph)
        return owner

    def _say_replaced(self, graph: int) -> None:
        self._say(
            graph,
            "dit_cache: every call is computed: the model has new weights at each call, as where parameters are "
            "replaced to offload them (sequential CPU offload), and what was kept with other weights is not reused. "
            "Offload without new parameters: enable_model_cpu_offload() or enable_group_offload() of diffusers",
        )

    def _say(self, key: object, message: str) -> None:
        """Once."""
        if key not in self._said:
            self._said.add(key)
            log.warning(message)

    def forget_warnings(self) -> None:
        """They will be said again."""
        self._said.clear()

    def context(self, owner: Owner, said: Announced) -> str | None:
        """The name in ``said``, if it is of a call of the module that ``owner`` stands for."""
        model = said.model()
        return said.name if model is not None and self._known[owner].is_part_of(model) else None

    def find(self, parameters: Sequence[Tensor], graph: int, session: str) -> tuple[Owner, ModuleState]:
        """The module that has ``parameters``, called by ``graph``, and its state in ``session``."""
        owner = self.owner(parameters, graph)
        state = self._states.get((owner, session))
        if state is None:
            with self._lock:
                known = self._known[owner]
                state = ModuleState(known.history, self._on_end, known.budget)
                run = run_under_way()
                if run is not None and any(map(known.is_part_of, run.alive())):
                    state.clock.told = run.bar
                state = self._states.setdefault((owner, session), state)
        return owner, state

    def label(self, owner: Owner, name: str) -> str:
        """``name`` for the first module that is called so, ``name #2`` for the second (experts are of one class)."""
        label = self._labels.get(owner)
        if label is None:
            with self._lock:
                taken = set(self._labels.values())
                numbered = (f"{name} #{number}" for number in itertools.count(2))
                label = next(each for each in itertools.chain([name], numbered) if each not in taken)
                self._labels[owner] = label
        return label

    def follow(self, state: ModuleState, owner: Owner, call: Call, position: Position) -> None:
        """Looks whether the generation has come to ``state``, that of a default session, from another thread's."""
        states = list(self._states.items())
        others = [other for (known, _), other in states if other is not state and other.is_default() and known == owner]
        if follow(state, others, call, position):
            self._say(
                "moved",
                "dit_cache: the steps of one generation come from several threads, outside of any session. Each thread "
                "has a state of its own, so a step that follows one of another thread is computed, and little is "
                "reused. Hold one session for the request and enter it around each step: "
                "s = dit_compile.session(name, keep=True), then with s: ..., and s.close() at the end "
                "(loop.run_in_executor and thread pools do not pass a session on)",
            )

    def bound_run(self, model: torch.nn.Module, run: Run | None) -> None:
        """A pipeline begins ``run`` with ``model``, or ends one (None): ends the generation of ``model`` in the current
        session and frees its memory."""
        session = session_here(self.end_session).name
        for owner in self.owners(model):
            state = self._states.get((owner, session))
            if state is not None and not state.busy.locked():
                state.release()
                state.clock.told = None if run is None else run.bar

    def forget(self, owner: Owner, session: str) -> None:
        """Drops a state in which a call has failed half-way."""
        with self._lock:
            state = self._states.pop((owner, session), None)
        if state is not None:
            state.end_generation()

    def end_session(self, session: str) -> None:
        if os.getpid() == self._process:  # else a thread of the parent ends, in a forked child, and locks may be held
            self.reset(lambda owner, name: name == session)

    def reset(self, which: Callable[[Owner, str], bool] = lambda owner, session: True) -> None:
        """Ends generations and frees snapshots; statistics stay."""
        with self._lock:
            keys = [key for key in list(self._states) if which(*key)]
            states = [self._states.pop(key, None) for key in keys]
            for owner in {owner for owner, _ in keys} - {owner for owner, _ in list(self._states)}:
                self._labels.pop(owner, None)
        for state in states:
            if state is not None:
                state.end_generation()

    def history(self, module: torch.nn.Module | None) -> list[GenerationStats]:
        """Generations of ``module`` (None: of all modules), newest last."""
        with self._lock:
            for state in list(self._states.values()):
                if state.generation is not None and not state.generation.ended:
                    state.generation.bytes_held = state.bytes_held()
            known = [known for owner in self.owners(module) if (known := self._known.get(owner)) is not None]
            return [stats for one in known for stats in list(one.history)]

    def owners(self, module: torch.nn.Module | None) -> list[Owner]:
        known = list(self._known.items())  # other threads may add to it
        if module is None:
            return [owner for owner, _ in known]
        mine = {id(tensor) for tensor in tensors_of(module)}
        whole = [owner for owner, one in known if one.weights.alive() <= mine]
        return whole or [owner for owner, _ in known if not mine.isdisjoint(owner)]  # some blocks are in a closure

    def _drop(self, key: Owner) -> None:
        """A weight has died."""
        if os.getpid() != self._process or key not in self._owners:
            return
        with self._lock:
            owner = self._owners.pop(key, key)
            known = self._known.get(owner)
            if known is not None:
                states = [state for (one, _), state in list(self._states.items()) if one == owner]
                brief = bool(states) and all(state.clock.step <= 0 for state in states)
                self._brief[known.graph] = self._brief.get(known.graph, 0) + 1 if brief else 0
            if owner not in self._owners.values():
                self._known.pop(owner, None)
        self.reset(lambda one, session: one == owner)
