"""What tells one module from another, and what is known of a module as long as its weights live."""

from __future__ import annotations

import ctypes
import struct
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .budget import Budget
from .cuda_graphs import ModuleGraphs
from .stats import GenerationStats
from .weights_digest import weights_digest, weights_state

HISTORY = 64  # generations remembered per module

Addresses = bytes
"""The addresses of some objects, one after the other. Equal ones stand for the same objects while all are alive."""


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


@dataclass(eq=False)
class Owner:
    """A module that has state, and what is known of it in all its sessions; goes when a weight of it dies. ``graph`` is
    the number of the graph that it was first called through."""

    weights: Weights
    graph: int
    history: deque[GenerationStats] = field(default_factory=lambda: deque(maxlen=HISTORY))
    budget: Budget = field(default_factory=Budget)
    graphs: ModuleGraphs | None = None
    models: weakref.WeakKeyDictionary[torch.nn.Module, bool] = field(default_factory=weakref.WeakKeyDictionary)
    _digest: tuple[tuple[object, ...], str] | None = None

    def digest(self, tensors: Sequence[Tensor]) -> str:
        """``weights_digest`` of ``tensors``, the weights; taken anew where one was written to or moved."""
        now = weights_state(tensors)
        if self._digest is None or self._digest[0] != now:
            self._digest = (now, weights_digest(tensors))
        return self._digest[1]

    def is_part_of(self, model: torch.nn.Module) -> bool:
        """Whether ``model``, the one that a pipeline speaks of, has any of these weights."""
        known = self.models.get(model)
        if known is None:
            mine = self.weights.alive()
            known = self.models[model] = not mine.isdisjoint(map(id, tensors_of(model)))
        return known


def tensors_of(module: torch.nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def reader(places: Sequence[int]) -> Callable[[tuple[Any, ...]], Addresses]:
    """A function that reads the addresses of the items of a tuple at ``places``.

    A large model has a thousand weights. CPython keeps the addresses of a tuple's items in one array, which is copied
    here without a look at the items: 1 us for a thousand of them, where ``tuple(map(id, ...))`` takes 40 us and its
    hash as long again. Other implementations of Python take that way.
    """
    if not places:
        return lambda args: b""
    if not _items_are_an_array():
        return lambda args: struct.pack(f"{len(places)}P", *[id(args[place]) for place in places])
    runs = _runs(places)
    first, last = min(places), max(places) + 1
    start, size, string_at = tuple.__basicsize__ + first * _POINTER, (last - first) * _POINTER, ctypes.string_at
    if runs == [(first, last)]:
        return lambda args: string_at(id(args) + start, size)
    cuts = [slice((begin - first) * _POINTER, (end - first) * _POINTER) for begin, end in runs]

    def read(args: tuple[Any, ...]) -> Addresses:
        span = string_at(id(args) + start, size)
        return b"".join([span[cut] for cut in cuts])

    return read


_POINTER = struct.calcsize("P")


def _items_are_an_array() -> bool:
    """Whether the addresses of a tuple's items follow its header, as in CPython."""
    if sys.implementation.name != "cpython":
        return False
    pair = (object(), object())
    found = ctypes.string_at(id(pair) + tuple.__basicsize__, 2 * _POINTER)
    return found == struct.pack("2P", *map(id, pair))


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """``[3, 4, 5, 9]`` -> ``[(3, 6), (9, 10)]``."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs
