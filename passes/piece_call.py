"""Calls of compiled pieces, past what stands around Inductor's code where that has nothing to do.

    segment -> AOTAutograd's wrappers -> CompiledFxGraph -> code           4 us
    segment -> code                                                        1.5 us

The wrappers put right what a piece does to its inputs, views that it returns, tensor subclasses, autocast. For most
pieces none of that is needed, and a model has a piece for each block. Whether it is needed is not derived but seen: the
first call of a piece goes through all wrappers. If the code got the very objects that the piece was called with, and
the very objects that it returned came out again, later calls go to the code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from ..compat.inductor_code import InductorCode, autocast_is_on
from .effects import Effects

Boxed = Callable[[list[Any]], Sequence[Any]]
"""Takes all arguments in one list, which it empties, as Inductor's code does."""


class PieceCall:
    """A piece before its first call is over. ``wrapped`` is what ``compile_fx`` returned, ``code`` the code inside.

    Called with one list of arguments. Puts its successor into all ``places``: (what calls it, attribute).
    """

    def __init__(self, wrapped: Callable[..., Any], code: InductorCode) -> None:
        self.places: list[tuple[object, str]] = []
        self.wrapped, self._code = wrapped, code
        self._lock = threading.Lock()
        self._settled: Boxed | None = None

    def __call__(self, args: list[Any]) -> Sequence[Any]:
        if self._settled is not None:  # in another thread, after this one has looked the attribute up
            return self._settled(args)
        if not self._lock.acquire(blocking=False):
            result: Sequence[Any] = self.wrapped(*args)
            return result
        try:
            return self._first(args)
        finally:
            self._lock.release()

    def _first(self, args: list[Any]) -> Sequence[Any]:
        with self._code.watched() as seen:
            outs: Sequence[Any] = self.wrapped(*args)
        passes_through = len(seen) == 1 and _same(args, seen[0].args) and _same(outs, seen[0].outs)
        self._settled = self._code.callable() if passes_through else _unboxed(self.wrapped)
        for segment, name in self.places:
            setattr(segment, name, self._settled)
        return outs


def piece_call(
    wrapped: Callable[..., Any], found: Sequence[InductorCode], effects: Effects
) -> PieceCall | Callable[..., Any]:
    """How to call a piece in which Inductor's code was ``found``: ``wrapped`` itself where nothing else will do."""
    if len(found) != 1 or effects.written or effects.tokens or autocast_is_on():
        return wrapped
    return PieceCall(wrapped, found[0])


def boxed_call(wrapped: Callable[..., Any], found: Sequence[InductorCode]) -> Boxed:
    """The call of a piece for which ``piece_call`` gave a ``PieceCall`` in the process that compiled it."""
    return PieceCall(wrapped, found[0]) if len(found) == 1 else _unboxed(wrapped)


def put_piece(segment: GraphModule, name: str, code: PieceCall | Callable[..., Any]) -> None:
    """Puts ``code`` where the submodule ``name`` of ``segment`` was; the segment is to be recompiled."""
    delattr(segment, name)
    setattr(segment, name, code)
    if isinstance(code, PieceCall):
        code.places.append((segment, name))
        for node in segment.graph.find_nodes(op="call_module", target=name):
            node.args = (list(node.args),)


def _same(some: object, others: object) -> bool:
    """Whether both are sequences of the same objects."""
    if not isinstance(some, tuple | list) or not isinstance(others, tuple | list):
        return False
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _unboxed(code: Callable[..., Any]) -> Boxed:
    def call(args: list[Any]) -> Sequence[Any]:
        result: Sequence[Any] = code(*args)
        return result

    return call
