"""Whether a model is built like one of another process: a description that holds names in the place of objects."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..passes.identity import Same
from .structure import unmarked_class


class Fingerprint(NamedTuple):
    """``weights`` of the whole model by name: shape, dtype, kind of device. ``blocks``: each repeated block, in order,
    with numbers for the different ``kinds``; the last number is of what is outside of blocks."""

    model: str
    weights: dict[str, str]
    blocks: tuple[int, ...]
    kinds: tuple[Hashable, ...]


def fingerprint(model: nn.Module, keys: Sequence[Hashable]) -> Fingerprint:
    """Of ``model``; ``keys`` describe its repeated blocks, and what it has besides."""
    numbers: dict[Hashable, int] = {}
    order = tuple(numbers.setdefault(key, len(numbers)) for key in keys)
    named = [*model.named_parameters(), *model.named_buffers()]
    weights = {
        name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device.type}"
        for name, tensor in named
    }
    return Fingerprint(_name(unmarked_class(type(model))), weights, order, tuple(map(_portable, numbers)))


def difference(saved: Fingerprint, here: Fingerprint) -> str | None:
    """The first difference, in words; None where there is none."""
    if saved.model != here.model:
        return f"it is a {saved.model}, and this is a {here.model}"
    for name in dict.fromkeys([*saved.weights, *here.weights]):
        was, now = saved.weights.get(name), here.weights.get(name)
        if was != now:
            return f"{name} was {was or 'not there'}, and is {now or 'not there'} here"
    if saved.blocks != here.blocks:
        return "other blocks of it are alike (attributes, adapters, processors or hooks of some blocks differ)"
    for kind, other in zip(saved.kinds, here.kinds, strict=True):
        pair = next(_differences(kind, other), None)
        if pair is not None:
            return f"{pair[0]} became {pair[1]} (an attribute, a processor, an adapter or a hook)"
    return None


def _differences(was: Any, now: Any) -> Iterator[tuple[str, str]]:
    if isinstance(was, tuple) and isinstance(now, tuple) and len(was) == len(now):
        for one, other in zip(was, now, strict=True):
            yield from _differences(one, other)
    elif was != now:
        yield str(was)[:200], str(now)[:200]


def _portable(value: Any) -> Hashable:
    """``value`` with names in the place of classes, functions and other objects."""
    if isinstance(value, Same):
        return _name(value.value)
    if isinstance(value, tuple):
        return tuple(map(_portable, value))
    if isinstance(value, frozenset):
        return tuple(sorted(map(repr, map(_portable, value))))
    if isinstance(value, (type, types.FunctionType)):
        return _name(value)
    return value if isinstance(value, str) else repr(value)


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
