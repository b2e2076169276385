"""The side table: everything that must live from one denoising step to the next."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .clock import Position
from .cuda_graphs import ModuleGraphs
from .diffusers_hook import Announced, Run, run_under_way
from .fork import free_in_child, tell_in_child
from .inputs import Call
from .session import session_here
from .state import ModuleState
from .stats import GenerationStats
from .trail import follow
from .weights import Addresses, Owner, Weights, tensors_of

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
        self._owners: dict[Addresses | int, Owner] = {}  # by the weights of a graph, or by the graph that has none
        self._brief: dict[int, int] = {}  # graph -> how many of its modules, up to the last one, lived for one step
        self._labels: dict[Owner, str] = {}  # of modules that have state
        self.epoch = object()  # another one when a weight has died: its address may be another tensor's then

    def owner(self, addresses: Addresses, weights: Callable[[], Sequence[Tensor]], graph: int) -> Owner:
        """The module whose ``weights`` are at ``addresses``; of a model without any, the graph stands in."""
        key = addresses or graph
        owner = self._owners.get(key)
        if owner is None:
            with self._lock:
                tensors = weights()
                these = Weights.of(tensors)
                # a copy: what dies in between, by garbage collection in this thread, is taken out of the table
                same = (known for known in list(self._owners.values()) if known.weights.are_those_of(these))
                owner = self._owners.setdefault(key, next(same, None) or Owner(these, graph))
                owner.weights.buffers.update(these.buffers)
                for tensor in tensors:  # any of them may be the one that tells two modules apart
                    if id(tensor) in these.fixed:
                        weakref.finalize(tensor, self._drop, key).atexit = False
            if self._brief.get(graph, 0) >= BRIEF:
                self._say_replaced(graph)
        return owner

    def _say_replaced(self, graph: int) -> None:
        self.say(
            graph,
            "dit_cache: every call is computed: the model has new weights at each call, as where parameters are "
            "replaced to offload them (sequential CPU offload), and what was kept with other weights is not reused. "
            "Offload without new parameters: enable_model_cpu_offload() or enable_group_offload() of diffusers",
        )

    def say(self, key: object, message: str) -> None:
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
        return said.name if model is not None and owner.is_part_of(model) else None

    def state(self, owner: Owner, session: str) -> ModuleState:
        state = self._states.get((owner, session))
        if state is None:
            with self._lock:
                state = ModuleState(owner.history, self._on_end, owner.budget)
                run = run_under_way()
                if run is not None and any(map(owner.is_part_of, run.alive())):
                    state.clock.told = run.bar
                state = self._states.setdefault((owner, session), state)
        return state

    def graphs(self, owner: Owner) -> ModuleGraphs:
        """The CUDA graphs of a module; they go with it."""
        graphs = owner.graphs
        if graphs is None:
            graphs = owner.graphs = ModuleGraphs(self.say)
        return graphs

    def free_graphs(self, owners: Iterable[Owner]) -> None:
        """Frees the CUDA graphs of these modules and their memory; those of a call under way when it ends."""
        for owner in owners:
            owner.graphs = None

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
        others = [other for (known, _), other in states if other is not state and other.is_default() and known is owner]
        if follow(state, others, call, position):
            self.say(
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
            in_use = {owner for owner, _ in list(self._states)}
            for owner in [owner for owner in self._labels if owner not in in_use]:
                del self._labels[owner]  # also of a module whose call has failed, which left no state
        for state in states:
            if state is not None:
                state.end_generation()

    def history(self, module: torch.nn.Module | None) -> list[GenerationStats]:
        """Generations of ``module`` (None: of all modules), newest last."""
        with self._lock:
            for state in list(self._states.values()):
                if state.generation is not None and not state.generation.ended:
                    state.generation.bytes_held = state.bytes_held()
            return [stats for owner in self.owners(module) for stats in list(owner.history)]

    def owners(self, module: torch.nn.Module | None) -> list[Owner]:
        owners = list(dict.fromkeys(list(self._owners.values())))  # other threads may add to it
        if module is None:
            return owners
        mine = {id(tensor) for tensor in tensors_of(module)}
        whole = [owner for owner in owners if owner.weights.alive() <= mine]
        return whole or [owner for owner in owners if not mine.isdisjoint(owner.weights.alive())]  # in a closure

    def _drop(self, key: Addresses | int) -> None:
        """A weight has died."""
        if os.getpid() != self._process:
            return
        self.epoch = object()
        if key not in self._owners:
            return
        with self._lock:
            owner = self._owners.pop(key, None)
            if owner is None:
                return
            states = [state for (one, _), state in list(self._states.items()) if one is owner]
            brief = bool(states) and all(state.clock.step <= 0 for state in states)
            self._brief[owner.graph] = self._brief.get(owner.graph, 0) + 1 if brief else 0
        owner.graphs = None  # a graph may remember the owner of its last call
        self.reset(lambda one, session: one is owner)
