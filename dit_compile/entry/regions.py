"""Marks repeated blocks as regions, so that Dynamo traces one of each kind and reuses the trace for the others.

``torch.compiler.nested_compile_region`` reuses a trace (torch 2.13 on) where the second block would give the same: it
compares the inputs and evaluates every guard of the first trace on the second block. It marks functions, and demands
that they take tensors, numbers and modules alone and return tensors that share no memory with an input. A marked block
therefore gets a subclass of its class, whose ``forward`` takes its arguments apart in front of the region and puts them
together again inside of it:

    blocks.0(h, temb=t, rotary=(cos, sin))  ->  region(blocks.0, ". temb=. rotary=(2 . .", h, t, cos, sin)

Dynamo emits a call of a sub-graph for each block; ``inline_bodies`` makes blocks of them again.
"""

from __future__ import annotations

import copyreg
import itertools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import region_marker
from .structure import ORIGINAL, kinds_of, unmarked_class

MIN_BLOCKS = 3
_classes: weakref.WeakValueDictionary[tuple[type, Hashable], type] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def mark(model: nn.Module) -> int:
    """Marks the repeated blocks of ``model``: children of one class in one list of modules. Returns their number.

    Marked blocks keep name, module and documentation of their class; copies and pickled blocks are of the class itself.
    """
    marker = region_marker()
    if marker is None:
        return 0
    # where forward is replaced for a block alone, its class is not what runs
    blocks = [block for block in repeated_blocks(model) if "forward" not in vars(block)]
    for block, kind in zip(blocks, kinds_of(model, blocks), strict=True):
        block.__class__ = _marked_class(unmarked_class(type(block)), kind, marker)
    return len(blocks)


def unmark(model: nn.Module) -> None:
    """Gives every block its own class back."""
    for module in model.modules():
        original = unmarked_class(type(module))
        if original is not type(module):
            module.__class__ = original


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The children of each outermost list of modules that have a class in common, at least three of them."""
    found: list[nn.Module] = []
    kinds: dict[type, list[nn.Module]] = {}
    if isinstance(model, nn.ModuleList | nn.Sequential):
        for child in model:
            kinds.setdefault(unmarked_class(type(child)), []).append(child)
    for cls, blocks in kinds.items():
        if len(blocks) >= MIN_BLOCKS and not cls.__module__.startswith("torch.nn."):
            found += blocks
    inside = set(map(id, found))
    for child in model.children():
        if id(child) not in inside:
            found += repeated_blocks(child)
    return found


def _marked_class(cls: Any, kind: Hashable, marker: Callable[..., Any]) -> type:
    known = _classes.get((cls, kind))
    if known is not None:
        return known
    # torch finds reusable traces by code object, and code objects of equal content are equal: each class has a name
    name = f"{cls.__name__}_{next(_numbers)}"
    body = types.FunctionType(_body.__code__.replace(co_name=name), _body.__globals__, name)
    region = marker(body)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self._dit_forward(*args, **kwargs)
        leaves: list[Any] = []
        form = _take_apart(args, kwargs, leaves)
        return self._dit_forward(*args, **kwargs) if form is None else region(self, form, *leaves)

    def reduce(self: Any, protocol: Any) -> Any:
        """As an object of ``cls``: pickle finds classes by name, and looks up what needs no import of this package."""
        make, given, *rest = cls.__reduce_ex__(self, protocol)
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (copyreg._reconstructor, (cls, object, None), *rest)  # type: ignore[attr-defined]
        return (make, tuple(cls if one is marked else one for one in given), *rest)

    members = {
        "__doc__": cls.__doc__, "__module__": cls.__module__, "__qualname__": cls.__qualname__,
        "__reduce_ex__": reduce, "forward": forward, "_dit_forward": cls.forward, ORIGINAL: cls,
    }  # fmt: skip
    forward.__wrapped__ = cls.forward  # type: ignore[attr-defined]  # the signature that others ask for
    marked = _classes[cls, kind] = type(cls)(cls.__name__, (cls,), members)
    return marked


def _body(block: Any, form: str, *leaves: Any) -> Any:
    """The region. Its outputs are new tensors: a region may return neither an input nor two views of one tensor."""
    args, kwargs = _put_together(form, leaves)
    result = block._dit_forward(*args, **kwargs)
    return _fresh(result) if isinstance(result, Tensor) else tuple([_fresh(one) for one in result])


def _fresh(value: Any) -> Any:
    """A copy. The stride of a dimension of size 1 means nothing, but torch compares it: it gets the usual one."""
    if not isinstance(value, Tensor):
        return value
    return value.clone(memory_format=torch.contiguous_format) if value.is_contiguous() else value.clone()


def _take_apart(args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> str | None:
    """Appends the tensors and numbers of a call to ``leaves`` and returns how they are arranged, one word for each
    value; None where there is something that is neither. A tensor that comes twice is passed once (``@`` and its
    place), because torch tells operands apart by the value, not by the place."""
    words = []
    for value in args:
        words.append(_form(value, leaves))
    for name, value in kwargs.items():
        words.append(f"{name}={_form(value, leaves)}")
    form = " ".join(words)
    return None if "?" in form else form


def _form(value: Any, leaves: list[Any]) -> str:
    if isinstance(value, Tensor):
        for place, known in enumerate(leaves):
            if known is value:
                return f"@{place}"
        leaves.append(value)
        return "."
    if value is None or type(value) is bool:  # not their subclasses, which enumerations are
        return repr(value)
    if type(value) is str:
        return repr(value) if value.isalnum() else "?"
    if type(value) is int:
        leaves.append(int(value))  # as an operand of its own, not by the attribute that it comes from
        return "."
    if type(value) is float:
        leaves.append(float(value))
        return "."
    if type(value) is tuple or type(value) is list:
        words = [_form(one, leaves) for one in value]
        return " ".join([f"{type(value).__name__}:{len(words)}", *words])
    if type(value) is dict:
        for name in value:
            if not isinstance(name, str) or not name.isidentifier():  # a word would not tell what it was
                return "?"
        words = [f"{name}={_form(one, leaves)}" for name, one in value.items()]
        return " ".join([f"dict:{len(words)}", *words])
    return "?"


def _put_together(form: str, leaves: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
    """The inverse of ``_take_apart``."""
    words = form.split(" ") if form else []
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    place = used = 0
    while place < len(words):
        name, _, word = words[place].rpartition("=")
        value, place, used = _value(word, words, place + 1, leaves, used)
        if name:
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def _value(word: str, words: list[str], place: int, leaves: tuple[Any, ...], used: int) -> tuple[Any, int, int]:
    """The value that begins with ``word``, the place of the next word, and the number of leaves used so far."""
    if word == ".":
        return leaves[used], place, used + 1
    if word[0] == "@":
        return leaves[int(word[1:])], place, used
    if word in _WORDS:
        return _WORDS[word], place, used
    if word[0] == "'":
        return word[1:-1], place, used
    kind, _, count = word.partition(":")
    names, values = [], []
    for _ in range(int(count)):
        name, _, inner = words[place].rpartition("=")
        value, place, used = _value(inner, words, place + 1, leaves, used)
        names.append(name)
        values.append(value)
    if kind == "dict":
        return dict(zip(names, values)), place, used  # noqa: B905 - Dynamo traces it without strict
    return (tuple(values) if kind == "tuple" else values), place, used


_WORDS = {"None": None, "True": True, "False": False}
