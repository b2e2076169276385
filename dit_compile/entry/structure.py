"""What a block is made of, as far as its computation may depend on it.

``Description`` is equal for two blocks, and for one block at two times, where classes, settings, hooks, processors,
adapters and the layouts of weights are equal; the numbers in the weights are no part of it. ``Snapshot`` is faster: it
tells whether anything may have changed. Both look at the modules of a block and at objects in their
attributes (processors, adapters' settings), no deeper than ``DEPTH``.
"""

from __future__ import annotations

import functools
import logging
import types
import weakref
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import OpOverload, OpOverloadPacket
from ..passes.identity import Same, content

DEPTH = 3
ORIGINAL = "_dit_original"  # attribute of a class that was made of another: see regions.py
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_with_kwargs", "_always_called")))
_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_CONTAINERS = (dict, list, set)
_FUNCTIONS = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
_OPAQUE = (
    *_FUNCTIONS, types.ModuleType,
    Tensor, torch.dtype, torch.device, logging.Logger, OpOverload, OpOverloadPacket,
)  # fmt: skip


def functions_outside(model: nn.Module, blocks: Sequence[nn.Module]) -> Hashable:
    """Functions, classes and hooks that ``model`` has in attributes of modules outside of ``blocks``.

    Dynamo guards them by identity, which cannot be done in another process.
    """
    found: list[Hashable] = []
    for name, module in model.named_modules(memo=set(blocks)):
        for attribute, value in vars(module).items():
            if isinstance(value, _FUNCTIONS):
                found.append((name, attribute, Same(value)))
            elif isinstance(value, (Mapping, list, tuple)):
                items = value.values() if isinstance(value, Mapping) else value
                inside = tuple([Same(item) for item in items if isinstance(item, _FUNCTIONS)])
                if inside:
                    found.append((name, attribute, *inside))
    return tuple(found)


def kinds_of(model: nn.Module, blocks: Sequence[nn.Module]) -> list[Hashable]:
    """For each of ``blocks`` what keeps its trace from serving another, beside what Dynamo compares itself.

    That are hooks, which Dynamo does not guard, and objects that a block shares with others or with the rest of
    ``model`` (tied weights, one processor for all): Dynamo knows a shared object by the first place that it has found
    it in, and would take it for a part of every block that the trace serves. Kinds are compared while ``model`` is
    traced, so addresses will do.
    """
    parts = [list(_parts_of(block)) for block in blocks]
    inside = {id(module) for block in blocks for module in block.modules()}
    owners = Counter(number for found in parts for number in {id(part) for _, part in found})
    outside = (module for module in model.modules() if id(module) not in inside)
    owners.update({id(part) for module in outside for _, part in _attributes(module, "", 0)})
    for block in blocks:
        owners[id(block)] = 0  # in a list of the model, of course
    return [(_hooks_of(block), *_sharing(found, owners)) for block, found in zip(blocks, parts, strict=True)]


def _sharing(parts: Sequence[tuple[str, Any]], owners: Mapping[int, int]) -> tuple[Hashable, Hashable]:
    """The parts that have several owners, and which parts are one and the same within the block."""
    first: dict[int, int] = {}
    pattern = tuple(first.setdefault(id(part), place) for place, (_, part) in enumerate(parts))
    return tuple((place, id(part)) for place, part in parts if owners[id(part)] > 1), pattern


def _parts_of(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything in ``block`` that has an identity, by its place."""
    for name, module in block.named_modules(remove_duplicate=False):
        yield from _attributes(module, name, 0)


def _attributes(owner: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in vars(owner).items():
        yield from _parts(value, f"{place}/{name}", depth)


def _parts(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _ATOMS):
        return
    yield place, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(item, f"{place}/{key}", depth)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from _parts(item, f"{place}/{number}", depth)
    elif has_attributes(value) and not isinstance(value, nn.Module) and depth < DEPTH:
        yield from _attributes(value, place, depth + 1)


def _hooks_of(block: nn.Module) -> Hashable:
    """The hooks inside ``block``, by the module that has them; equal hooks are one and the same function."""
    found: list[Hashable] = []
    for name, module in block.named_modules():
        attributes = vars(module)
        for kind in _HOOKS:
            hooks = attributes.get(kind)
            if hooks:
                found.append((name, kind, tuple(map(id, hooks.values()))))
        if "forward" in attributes and name:
            found.append((name, "forward", id(attributes["forward"])))
    return tuple(found)


class Description:
    """What ``block`` is made of: ``form`` without the floats in its attributes, ``floats`` by the place they have in it
    (``attn/to_q/scaling/a``). Programs change floats between requests, the weight of an adapter for example."""

    def __init__(self, block: nn.Module) -> None:
        self.floats: dict[str, float] = {}
        self.form: Hashable = tuple(
            (name, _of_class(unmarked_class(type(module))), self._of(vars(module), 0, name.replace(".", "/")))
            for name, module in block.named_modules()
        )

    def key(self, moving: Collection[str]) -> Hashable:
        """Equal for equal blocks, whatever the floats at the places ``moving`` are."""
        return (self.form, tuple([value for place, value in self.floats.items() if place not in moving]))

    def _of(self, value: Any, depth: int, place: str) -> Hashable:
        if isinstance(value, Tensor):
            return layout(value)
        if type(value) is float:
            self.floats[place.lstrip("/")] = value
            return place
        if isinstance(value, nn.Module):  # a child, which is described by itself, or one of another place
            return (type(value), "training" if value.training else "eval")
        if isinstance(value, Mapping):
            items = ((content(key), self._of(item, depth, f"{place}/{key}")) for key, item in value.items())
            return (type(value), *items)
        if isinstance(value, (tuple, list)):
            return (type(value), *(self._of(item, depth, f"{place}/{i}") for i, item in enumerate(value)))
        if has_attributes(value) and depth < DEPTH:
            return (_of_class(type(value)), self._of(vars(value), depth + 1, place))
        return content(value)


def _of_class(cls: type) -> Hashable:
    """``cls`` with its methods and those of its bases, which a program may replace."""
    methods = (value for base in classes_of(cls) for value in vars(base).values() if callable(value))
    return (cls, *map(Same, methods))


def unmarked_class(cls: type) -> type:
    """The class that a block had before it was marked as a region, or ``cls``."""
    original: type = vars(cls).get(ORIGINAL, cls)
    return original


def classes_of(cls: type) -> Iterator[type]:
    """``cls`` and its bases, without those that every module has."""
    return (base for base in cls.__mro__ if base is not nn.Module and base is not object)


def has_attributes(value: Any) -> bool:
    """Whether ``value`` is an object whose state is in its attributes."""
    return hasattr(value, "__dict__") and not isinstance(value, _OPAQUE)


def layout(tensor: Tensor) -> Hashable:
    """What compiled code may depend on in a weight."""
    return (type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)


class Snapshot:
    """Which objects some blocks consist of at one time, and the layouts of their weights.

    Objects are compared by identity. Numbers, texts and functions are kept alive, so that their identity is not given
    to others; tensors, modules and other objects are not kept alive, it is noticed when they go.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self._gone: list[Any] = []
        self._kept: list[Any] = []
        self._objects: list[weakref.ref[Any]] = []
        self._containers: list[tuple[str, ...]] = []  # of each object: names of the attributes that hold several values
        self._tensors: list[weakref.ref[Tensor]] = []
        self._classes: dict[type, None] = {}
        self._seen: set[int] = set()
        for block in blocks:
            for module in block.modules():
                self._add(module, 0)
        self._ids = self._identities()
        self._layouts = self._look_at_tensors()

    def differs(self) -> bool:
        """Whether anything may have changed since then."""
        return bool(self._gone) or self._identities() != self._ids or self._look_at_tensors() != self._layouts

    def _add(self, owner: Any, depth: int) -> None:
        if id(owner) in self._seen:
            return
        self._seen.add(id(owner))
        self._objects.append(weakref.ref(owner, self._gone.append))
        self._classes.update(dict.fromkeys(classes_of(type(owner))))
        attributes = vars(owner)
        self._containers.append(tuple(name for name, value in attributes.items() if isinstance(value, _CONTAINERS)))
        for value in attributes.values():
            self._look_at(value, depth)

    def _look_at(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._tensors.append(weakref.ref(value, self._gone.append))
        elif isinstance(value, nn.Module):
            pass  # a child is added by itself
        elif isinstance(value, (Mapping, tuple, list, set)):
            for item in value.values() if isinstance(value, Mapping) else value:
                self._look_at(item, depth)
        elif has_attributes(value) and depth < DEPTH:
            try:
                self._add(value, depth + 1)
            except TypeError:  # there are no weak references to it
                self._kept.append(value)
        else:
            self._kept.append(value)

    def _identities(self) -> list[int]:
        ids: list[int] = []
        for reference, names in zip(self._objects, self._containers, strict=True):
            owner = reference()
            if owner is None:
                return []
            attributes = vars(owner)
            ids.append(id(type(owner)))
            ids.extend(map(id, attributes.values()))
            for name in names:
                container = attributes.get(name)
                if container:
                    ids.extend(_members(container))
        for cls in self._classes:
            ids.extend(map(id, vars(cls).values()))
        return ids

    def _look_at_tensors(self) -> list[Any]:
        return [layout(tensor) for reference in self._tensors if (tensor := reference()) is not None]


def _members(container: Any) -> Iterator[int]:
    """The identities of what is in ``container``; those of what is in containers there, too."""
    values: Sequence[Any] = list(container.values() if isinstance(container, Mapping) else container)
    yield from map(id, values)
    for value in values:
        if isinstance(value, _CONTAINERS):
            yield from _members(value)
