"""A model that ``dit_compile.compile`` has compiled in place, and the call of it."""

from __future__ import annotations

import inspect
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from ..api import reports
from ..artifact import GraphArtifact
from ..compat.compiling import graph_break_errors, numbers_as_inputs, region_errors
from ..compat.precompile import failed_to_record, guarded_key_orders, is_portable
from ..compat.workers import start_workers
from ..config import ConfigError
from ..passes.inline_bodies import RegionMismatch
from ..runtime.fork import free_in_child
from ..runtime.watched import StructureChanged, under_way
from .call import call_of
from .fingerprint import Fingerprint, fingerprint
from .guards import block_paths, find_tensor, name_inside, outside_of, place_inside
from .recording import Recording, unique_name
from .regions import mark, repeated_blocks, unmark
from .structure import Description, Snapshot, functions_outside
from .switches import Switches

log = logging.getLogger("dit_compile")

RESTLESS = 3  # generations in a row that begin with another structure
MOST_STRUCTURES = 4096  # remembered; one that comes back later is compiled again
_structures: dict[Hashable, str] = {}


class SavedStructure(NamedTuple):
    """``tokens`` are what compiled code calls the kinds of blocks of ``named``; ``moving``: see ``Description.key``."""

    named: Fingerprint
    tokens: list[str]
    moving: frozenset[str]


class Target:
    """One module, compiled with ``options``. ``install`` puts it where ``nn.Module.compile`` puts compiled code.

    With ``regions`` one block of each kind is traced; with ``watch`` guards inside of blocks are dropped, and the
    blocks are looked at where a generation begins.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Mapping[str, Any],
        *,
        dynamic: bool | None,
        fullgraph: bool,
        regions: bool = True,
        watch: bool = True,
        switches: bool = True,
        recording: Recording | None = None,
    ) -> None:
        self._model = weakref.ref(model)  # the model holds the target
        self._lock = free_in_child(threading.RLock())
        self._regions, self._watch = regions, watch
        self._structure = ""
        self._paths: frozenset[tuple[str, ...]] = frozenset()
        self._names: tuple[str, ...] = ()
        self._snapshot: Snapshot | None = None
        self._blocks: list[Description] = []
        self._moving: frozenset[str] = frozenset()
        self._weights: dict[int, tuple[Sequence[str], list[torch.Tensor]]] = {}
        self._looks = self._restless = 0
        self._seen: set[str] = set()  # structures
        self._cached = False
        self._keys: list[Hashable] = []
        self._named: dict[Hashable, str] = {}  # how compiled code calls each kind of block
        self._outside: tuple[Hashable, ...] = ()
        self._portable = recording is not None
        self._key_orders: set[Any] = set()  # Dynamo's, of the graph that was compiled last
        self._tokens: dict[Hashable, str] = {}  # of an earlier process
        self.options, self.recording = options, recording
        self.unrecorded = "give dit_compile.compile(..., record=True), which torch 2.13 and later can follow"
        self._how: dict[str, Any] = dict(
            dynamic=dynamic, fullgraph=fullgraph, find=switches, name=type(model).__name__,
            simplify=self._trace_every_block, around=self._with_inputs_for_numbers,
        )  # fmt: skip
        self._compile()

    def _compile(self) -> None:
        recording = self.recording
        options = {**self.options, "guard_filter_fn": self._filter} if self._watch or recording else dict(self.options)
        if recording is None:
            self._compiled = Switches(call_of(type(self.model)), options, **self._how)
        else:
            self._compiled = Switches(recording.function, options, package=recording.package, **self._how)

    def install(self) -> None:
        self.model._compiled_call_impl = self

    @property
    def model(self) -> torch.nn.Module:
        model = self._model()
        assert model is not None
        return model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._structure:
            start_workers()  # now the model is on its device, and Dynamo's trace takes longer than their start
            self._look()
        token, looks = under_way.set(self), self._looks
        try:
            return self._call(args, kwargs)
        except Exception:
            # StructureChanged, also where Dynamo has wrapped it. And what Dynamo fetches its inputs with fails where a
            # layer is gone, before anybody has looked.
            if self._looks == looks and not self.has_changed():
                raise
            return self._call(args, kwargs)
        finally:
            under_way.reset(token)

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if 0 < len(args) <= len(self._names):  # by name: what the time is called helps to find it
            named = dict(zip(self._names, args, strict=False))
            if named.keys().isdisjoint(kwargs):
                args, kwargs = (), {**named, **kwargs}
        try:
            return self._compiled(self._structure, self._model(), *args, **kwargs)
        except Exception as error:
            if self.recording is None or not failed_to_record(error):
                raise
            self._record_no_more(error)
        return self._compiled(self._structure, self._model(), *args, **kwargs)

    def _record_no_more(self, error: Exception) -> None:
        """What torch cannot keep is compiled as if nobody had asked to keep it."""
        reason = " ".join(str(error).split())
        self.recording, self.unrecorded = None, f"torch cannot keep what it compiled: {reason}"
        log.warning("dit_cache: %s cannot be saved: %s", type(self.model).__name__, self.unrecorded)
        self._compile()

    def _trace_every_block(self, error: Exception) -> bool:
        """After an ``error`` of tracing: whether there were regions, of which there are none from now on.

        In a region Dynamo traces less than in other code: graph breaks are errors there, and so are sizes that depend
        on the values of a tensor.
        """
        of_ours = isinstance(getattr(error, "inner_exception", None), ConfigError | StructureChanged)
        if of_ours or not self._regions or (self.recording is not None and failed_to_record(error)):
            return False
        self._regions = False
        unmark(self.model)
        reason = getattr(error, "inner_exception", error)
        log.log(
            logging.INFO
            if isinstance(reason, (*graph_break_errors(), *region_errors(), RegionMismatch))
            else logging.WARNING,
            "dit_cache: %s is traced block by block, because tracing one of each kind failed: %s. It takes longer "
            "to compile; regions=False says so at once",
            type(self.model).__name__,
            str(reason).strip().splitlines()[0],
        )
        return True

    def _with_inputs_for_numbers(self) -> AbstractContextManager[None]:
        """While Dynamo compiles: the numbers that have changed are inputs in every block, with the first new value."""
        if not self._moving:
            return nullcontext()
        return numbers_as_inputs(lambda expression: place_inside(self._paths, expression) in self._moving)

    def structure(self) -> SavedStructure:
        """What code that was compiled for this model is compared with in another process."""
        if not self._structure or not self._portable:
            self._portable = True
            self._look()
        named = fingerprint(self.model, self._keys)
        return SavedStructure(named, list(self._named.values()), self._moving)

    def adopt(self, recording: Recording, saved: SavedStructure) -> None:
        """Runs what was compiled for a model of the same structure in another process."""
        self._moving = saved.moving
        self._look()
        self._tokens = dict(zip(dict.fromkeys(self._keys), saved.tokens, strict=True))
        self._structure = ""
        self.recording = recording
        self._compile()

    def _look(self) -> None:
        """At the structure of the model: marks its blocks, and numbers what they are."""
        with self._lock:
            self._look_at(self.model)

    def _look_at(self, model: torch.nn.Module) -> None:
        self._looks += 1
        blocks = repeated_blocks(model)
        known, self._blocks = self._blocks, [Description(block) for block in blocks]
        if [block.form for block in self._blocks] == [block.form for block in known]:
            self._moving |= {
                place
                for old, new in zip(known, self._blocks, strict=True)
                for place, value in new.floats.items()
                if value != old.floats[place]
            }
        if self._moving:
            unmark(model)  # a region is traced with the numbers of its first block
        elif self._regions:
            mark(model)
        self._paths = block_paths(model)
        self._names = () if model._forward_pre_hooks or model._forward_hooks else names_of(model.forward)
        self._snapshot = Snapshot(blocks)
        self._outside = self._functions_outside()
        keys = self._keys = [*(block.key(self._moving) for block in self._blocks), *self._outside]
        named = (self._tokens.get(key) or _structures.setdefault(key, unique_name()) for key in keys)
        self._named = dict(zip(keys, named, strict=True))
        while len(_structures) > MOST_STRUCTURES:
            del _structures[next(iter(_structures))]
        structure = "-".join([*(self._named[key] for key in keys), *sorted(self._moving)]) or "no blocks"
        new = structure not in self._seen  # an adapter that comes and goes is not
        self._seen.add(structure)
        self._restless = self._restless + 1 if new and self._structure else 0
        self._structure = structure
        if self._restless >= RESTLESS and self._watch:
            self._watch = False  # what is compiled from now on keeps its guards
            log.warning(
                "dit_cache: blocks of %s were other ones before each of the last %d generations; Dynamo's guards watch "
                "them from now on, at every step",
                type(model).__name__,
                RESTLESS,
            )

    def _functions_outside(self) -> tuple[Hashable, ...]:
        """What guards that cannot be kept would watch, if code is kept."""
        if not self._portable:
            return ()
        return (functions_outside(self.model, repeated_blocks(self.model)),)

    def has_changed(self) -> bool:
        self._cached = False
        if self._snapshot is None or not (self._snapshot.differs() or self._functions_outside() != self._outside):
            return False
        with self._lock:
            before = self._structure
            self._look()
            return self._structure != before or self._weights_have_changed()

    def _weights_have_changed(self) -> bool:
        """Whether the weights that the call under way was given are others by now; the next one gets those of now."""
        used, self._weights = self._weights, {}
        return any(
            one is not other
            for names, tensors in used.values()
            for one, other in zip(tensors, self.weights(names), strict=True)
        )

    def name_of(self, source: str) -> str | None:
        return name_inside(self._paths, source) if self._watch else None

    def weights(self, names: Sequence[str]) -> Sequence[torch.Tensor]:
        known = self._weights.get(id(names))
        if known is None or known[0] is not names:
            model = self.model
            known = self._weights[id(names)] = (names, [find_tensor(model, name) for name in names])
        return known[1]

    def cached(self) -> None:
        self._cached = True
        if self.recording is not None and self._watch:
            self._key_orders = guarded_key_orders()

    def _filter(self, guards: Sequence[Any]) -> Sequence[bool]:
        """Dynamo asks which guards to keep of the graph that was compiled last."""
        cached, self._cached = self._cached, False
        kept = [True] * len(guards)
        if cached and self._watch:
            kept = outside_of(self._paths, guards)
            if self._moving:  # Dynamo makes operands of them; until it has, their values are guarded
                kept = [keep or isinstance(guard.value, float) for keep, guard in zip(kept, guards, strict=True)]
        if self.recording is not None:
            kept = [keep and is_portable(guard) for keep, guard in zip(kept, guards, strict=True)]
            orders = list(self._key_orders)
            inside = [source for source, keep in zip(orders, outside_of(self._paths, orders), strict=True) if not keep]
            self._key_orders.difference_update(inside)
            self._key_orders = set()
        if cached:
            reports.note_guards(len(guards), sum(kept))
        return kept

    def record(self, name: str, artifact: GraphArtifact | str) -> None:
        if self.recording is not None:
            self.recording.artifacts[name] = artifact


def names_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The leading parameters of ``function`` that may be passed by position or by name."""
    kinds = itertools.takewhile(
        lambda parameter: parameter.kind is parameter.POSITIONAL_OR_KEYWORD,
        inspect.signature(function).parameters.values(),
    )
    return tuple(parameter.name for parameter in kinds)
