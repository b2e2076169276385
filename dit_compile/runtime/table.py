"""The side table: everything that must live from one denoising step to the next."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Budget
from .diffusers_hook import Announced, Run, run_under_way
from .session import current_session
from .state import HISTORY, ModuleState
from .stats import GenerationStats

Owner = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """What tells a module from others: the identities of its parameters (``fixed``) and of its buffers.

    A model that is moved to another device and back (model offload) keeps its parameters, but has new buffers; the old
    ones are dead then. A model without parameters is known by its buffers.
    """

    fixed: frozenset[int]
    buffers: weakref.WeakValueDictionary[int, Tensor]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Weights:
        parameters = frozenset(id(tensor) for tensor in tensors if isinstance(tensor, torch.nn.Parameter))
        fixed = parameters or frozenset(map(id, tensors))
        return cls(fixed, weakref.WeakValueDictionary({id(t): t for t in tensors if id(t) not in fixed}))

    def are_those_of(self, other: Weights) -> bool:
        """Whether both may be of one module, whose graphs may use fewer weights (skipped blocks) or more (LoRA)."""
        mine, others = set(self.buffers), set(other.buffers)
        one_in_the_other = self.fixed <= other.fixed or other.fixed <= self.fixed
        return one_in_the_other and (mine <= others or others <= mine)

    def alive(self) -> frozenset[int]:
        return self.fixed | set(self.buffers)


class SideTable:
    """Keys state by module and session.

    A module is known by the identity of its weights, because Dynamo hands one compiled graph to all modules of the same
    class and shape, and copies may share all weights but one. When a weight dies, its module's state goes.
    """

    def __init__(self, on_end: Callable[[GenerationStats], None]) -> None:
        self._on_end = on_end
        self._lock = threading.RLock()
        self._states: dict[tuple[Owner, str], ModuleState] = {}
        self._history: dict[Owner, deque[GenerationStats]] = {}
        self._owned: weakref.WeakKeyDictionary[torch.nn.Module, dict[Owner, bool]] = weakref.WeakKeyDictionary()
        self._weights: dict[Owner, Weights] = {}
        self._budgets: dict[Owner, Budget] = {}
        self._owners: dict[Owner, Owner] = {}  # weights of a graph -> weights of the first graph of the same module
        self._labels: dict[Owner, str] = {}  # of modules that have state

    def owner(self, parameters: Sequence[Tensor], graph: int) -> Owner:
        """The key of the module that has ``parameters``; of a model without any, the graph stands in."""
        key = tuple(map(id, parameters)) or (-graph - 1,)
        owner = self._owners.get(key)
        if owner is None:
            with self._lock:
                weights = Weights.of(parameters)
                same = (known for known in self._history if self._weights[known].are_those_of(weights))
                owner = self._owners.setdefault(key, next(same, key))
                self._history.setdefault(owner, deque(maxlen=HISTORY))
                self._weights.setdefault(owner, weights).buffers.update(weights.buffers)
                for parameter in parameters:  # any of them may be the one that tells two modules apart
                    if id(parameter) in weights.fixed:
                        weakref.finalize(parameter, self._drop, key).atexit = False
        return owner

    def context(self, owner: Owner, said: Announced) -> str | None:
        """The name in ``said``, if it is of a call of the module that ``owner`` stands for."""
        model = said.model()
        if model is None:
            return None
        known = self._owned.setdefault(model, {})
        if owner not in known:
            known[owner] = _belongs(owner, model)
        return said.name if known[owner] else None

    def find(self, parameters: Sequence[Tensor], graph: int, session: str) -> tuple[Owner, ModuleState]:
        """The module that has ``parameters``, called by ``graph``, and its state in ``session``."""
        owner = self.owner(parameters, graph)
        state = self._states.get((owner, session))
        if state is None:
            with self._lock:
                budget = self._budgets.setdefault(owner, Budget())
                state = ModuleState(self._history[owner], self._on_end, budget)
                run = run_under_way()
                if run is not None and any(_belongs(owner, model) for model in run.alive()):
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

    def bound_run(self, model: torch.nn.Module, run: Run | None) -> None:
        """A pipeline begins ``run`` with ``model``, or ends one (None): ends the generation of ``model`` in the current
        session and frees its memory."""
        session = current_session(self.end_session).name
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
        self.reset(lambda owner, name: name == session)

    def reset(self, which: Callable[[Owner, str], bool] = lambda owner, session: True) -> None:
        """Ends generations and frees snapshots; statistics stay."""
        with self._lock:
            keys = [key for key in self._states if which(*key)]
            states = [self._states.pop(key) for key in keys]
            for owner in {owner for owner, _ in keys} - {owner for owner, _ in self._states}:
                self._labels.pop(owner, None)
        for state in states:
            state.end_generation()

    def history(self, module: torch.nn.Module | None) -> list[GenerationStats]:
        """Generations of ``module`` (None: of all modules), newest last."""
        with self._lock:
            for state in list(self._states.values()):
                if state.generation is not None and not state.generation.ended:
                    state.generation.bytes_held = state.bytes_held()
            owners = self.owners(module)
            return [stats for owner in owners for stats in self._history[owner]]

    def owners(self, module: torch.nn.Module | None) -> list[Owner]:
        if module is None:
            return list(self._history)
        mine = {id(tensor) for tensor in _tensors(module)}
        known = list(self._history)  # other threads may add to it
        whole = [owner for owner in known if self._weights[owner].alive() <= mine]
        return whole or [owner for owner in known if not mine.isdisjoint(owner)]  # some blocks are in a closure

    def _drop(self, key: Owner) -> None:
        owner = self._owners.pop(key, key)
        self.reset(lambda known, session: known == owner)
        with self._lock:
            if owner not in self._owners.values():
                self._history.pop(owner, None)
                self._weights.pop(owner, None)
                self._budgets.pop(owner, None)


def _belongs(owner: Owner, model: torch.nn.Module) -> bool:
    return not set(owner).isdisjoint(map(id, _tensors(model)))


def _tensors(module: torch.nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
