"""The side table: everything that must live from one denoising step to the next."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import CacheConfig
from ..readers import format_bytes
from .budget import Budget
from .clock import Clock
from .diffusers_hook import announced
from .host_read import HostRead
from .session import current_session
from .slots import Slots
from .stats import GenerationStats

log = logging.getLogger("dit_compile")

HISTORY = 64  # generations remembered per module

Owner = tuple[int, ...]


@dataclass
class PendingTime:
    """A timestep on its way to the host, and the call it belongs to."""

    step: int
    branch_call: bool
    certain: bool  # False: only this timestep can tell whether the call began a generation
    read: HostRead


@dataclass(frozen=True)
class SharedDiff:
    """The difference that one branch of a step has measured."""

    step: int
    branch: int
    diff: float


@dataclass(frozen=True)
class Measured:
    """What a call has measured for the next one: the sums of a probe against that of ``steps`` steps ago."""

    slots: Slots
    sums: Tensor
    steps: int


@dataclass
class ModuleState:
    """State of one module in one session. Used by one call at a time."""

    clock: Clock = field(default_factory=Clock)
    slots: dict[tuple[int, int, int, int], Slots] = field(default_factory=dict)  # (frame, region, branch, group)
    diffs: dict[tuple[int, int, int], SharedDiff] = field(default_factory=dict)  # (frame, region, group)
    measured: dict[tuple[int, int], tuple[list[Measured], HostRead]] = field(default_factory=dict)  # (frame, branch)
    pending: deque[PendingTime] = field(default_factory=deque)
    generation: GenerationStats | None = None
    budget: Budget = field(default_factory=Budget)  # the module's, shared with its other sessions
    busy: threading.Lock = field(default_factory=threading.Lock)  # held during a call
    announced: int | None = None  # fewest snapshots per region that a message has said the memory cap allows

    def clear(self, frame: int, branch: int, why: str = "no_snapshot") -> None:
        """Frees what ``frame`` holds for ``branch``; ``why`` will be the reason of the step that computes it again."""
        self.measured.pop((frame, branch), None)
        for key, slots in self.slots.items():
            if key[0] == frame and key[2] == branch:
                slots.clear(why)

    def drop_before(self, branch: int, step: int) -> None:
        """Frees what ``branch`` holds of steps before ``step``: another prompt had its place then."""
        for key, slots in self.slots.items():
            if key[2] == branch and slots.ring and slots.ring[0].step < step:
                slots.drop_before(step)

    def capped(self, kept: int, wanted: int, limit: int) -> None:
        """Counts a computed step that may keep but ``kept`` of ``wanted`` snapshots; says so once per session, and once
        more when steps must be computed for it."""
        stats = self.generation
        assert stats is not None
        stats.capped += 1
        stats.bytes_wanted = max(stats.bytes_wanted, self.budget.wanted())
        if self.announced is not None and (kept or not self.announced):
            return
        self.announced = kept
        cap, needed = format_bytes(limit), format_bytes(stats.bytes_wanted)
        log.warning(
            "dit_cache: max_bytes (DIT_CACHE_MAX_BYTES) is %s, but snapshots and probes would take %s: %s (%s, session "
            "%s). Raise it, or keep less: snapshot_dtype=float8, a lower taylor_order, a larger downsample_factor",
            cap if cap != needed else f"{limit} B",
            needed if cap != needed else f"{stats.bytes_wanted} B",
            f"{kept} of {wanted} snapshots are kept, so forecasts are of a lower order"
            if kept
            else "not even one snapshot fits everywhere, such steps are computed",
            stats.module,
            stats.session,
        )

    def bytes_held(self) -> int:
        """Safe to ask from another thread than the one that calls the model."""
        return sum(slots.nbytes() for slots in list(self.slots.values()))

    def free(self) -> None:
        """Frees what the generation holds of earlier steps; statistics stay."""
        self.slots.clear()
        self.diffs.clear()
        self.measured.clear()

    def release(self) -> None:
        """The generation is over: frees what it holds; the next call begins another."""
        self.free()
        self.pending.clear()
        self.clock.end()


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

    def context(self, owner: Owner) -> str | None:
        """The pipeline's name for the call under way, if it is a call of the module that ``owner`` stands for."""
        call = announced()
        model = call.model() if call is not None else None
        if call is None or model is None:
            return None
        known = self._owned.setdefault(model, {})
        if owner not in known:
            known[owner] = not set(owner).isdisjoint(map(id, _tensors(model)))
        return call.name if known[owner] else None

    def state(self, owner: Owner, session: str) -> ModuleState:
        state = self._states.get((owner, session))
        if state is None:
            with self._lock:
                budget = self._budgets.setdefault(owner, Budget())
                state = self._states.setdefault((owner, session), ModuleState(budget=budget))
        return state

    def begin_generation(
        self, state: ModuleState, owner: Owner, module: str, session: str, config: CacheConfig
    ) -> None:
        """Ends the running generation of ``state``, frees its snapshots and opens the next."""
        self._end(state)
        state.free()
        state.generation = GenerationStats(module=module, session=session, config=config)
        with self._lock:
            self._history[owner].append(state.generation)

    def _end(self, state: ModuleState) -> None:
        if state.generation is not None and not state.generation.ended:
            state.generation.ended = True
            state.generation.bytes_held = state.bytes_held()
            self._on_end(state.generation)

    def end_pipeline_call(self, model: torch.nn.Module) -> None:
        """Ends the generation of ``model`` in the current session and frees its memory: its pipeline is done."""
        session = current_session(self.end_session).name
        for owner in self.owners(model):
            state = self._states.get((owner, session))
            if state is not None and not state.busy.locked():
                self._end(state)
                state.release()

    def forget(self, owner: Owner, session: str) -> None:
        """Drops a state in which a call has failed half-way."""
        with self._lock:
            state = self._states.pop((owner, session), None)
        if state is not None:
            self._end(state)

    def end_session(self, session: str) -> None:
        self.reset(lambda owner, name: name == session)

    def reset(self, which: Callable[[Owner, str], bool] = lambda owner, session: True) -> None:
        """Ends generations and frees snapshots; statistics stay."""
        with self._lock:
            keys = [key for key in self._states if which(*key)]
            states = [self._states.pop(key) for key in keys]
        for state in states:
            self._end(state)

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


def _tensors(module: torch.nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
