"""What a piece of a graph is: two pieces are one piece of code exactly when their identities are equal.

The identity holds everything that compiled code may depend on: operators, wiring, numbers, layouts of values, and the
content of what the nodes read through attributes: sub-graphs of higher-order operators (``cond``, ``scan``,
``flex_attention``), recursively, and constants. Names, places in the model and weights are no part of it.

    block 0: y = linear(x, w0); flex_attention(q, k, v, get_attr[causal])
    block 1: y = linear(x, w1); flex_attention(q, k, v, get_attr[causal])     equal: another weight, the same sub-graph
    block 2: y = linear(x, w2); flex_attention(q, k, v, get_attr[window])     not equal

Identities are compared as wholes, never by a hash alone.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..compat import triton_call
from .facts import fake, is_static_input, same_size, size_expr

_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


class Same:
    """An object that is equal to itself only. Keeps it alive, so that its address names nothing else."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def identity(gm: GraphModule, nodes: Iterable[Node], *, exact: bool = True) -> Hashable:
    """The identity of ``nodes`` (in graph order), a hashable value.

    Nodes are numbered by place, values from outside by order of first use; ``gm`` holds the attributes that the nodes
    read. With ``exact`` a value is described as far as compiled code may depend on it (shape, strides, dtype, device,
    subclass); otherwise by dtype and rank only, so that blocks which differ in memory layout still count as repetitions
    of one block. Which inputs share memory matters only to pieces that write into them: see ``check_effects``.
    """
    return _Form(gm, exact).of(nodes)


class _Form:
    """Builds the identity of one list of nodes."""

    def __init__(self, gm: GraphModule, exact: bool) -> None:
        self._gm = gm
        self._exact = exact
        self._number: dict[Node, str] = {}
        self._parts: list[Hashable] = []

    def of(self, nodes: Iterable[Node]) -> Hashable:
        for place, node in enumerate(nodes):
            if node.op == "get_attr":
                continue  # what it reads is described where it is used
            if node.op == "placeholder":  # of a sub-graph
                self._parts.append((node.op, self._value(node)))
                self._number[node] = f"n{place}"
                continue
            kernel = triton_call(node)
            kwargs = {**node.kwargs, "kernel_idx": None, "constant_args_idx": None} if kernel else node.kwargs
            operands = (self._argument(node.args), self._argument(dict(kwargs)), self._argument(kernel))
            self._parts.append((node.op, type(node.target), node.target, *operands, self._value(node)))
            self._number[node] = f"n{place}"
        return tuple(self._parts)

    def _argument(self, value: Any) -> Hashable:
        if isinstance(value, Node):
            return self._reference(value)
        if isinstance(value, (tuple, list)):  # torch.Size and named tuples included
            return (type(value), *map(self._argument, value))
        if isinstance(value, dict):
            return (dict, *((key, self._argument(item)) for key, item in value.items()))
        if isinstance(value, slice):
            return ("slice", *map(self._argument, (value.start, value.stop, value.step)))
        return content(value)

    def _reference(self, node: Node) -> Hashable:
        known = self._number.get(node)
        if known is not None:
            return ("node", known)
        if node.op == "get_attr":
            return ("content", self._attribute(str(node.target)))
        self._number[node] = name = f"in{len(self._number)}"
        self._parts.append((name, is_static_input(node), self._value(node)))
        return ("node", name)

    def _attribute(self, path: str) -> Hashable:
        value: Any = self._gm
        for part in path.split("."):
            value = getattr(value, part)
        if isinstance(value, GraphModule):
            return (GraphModule, identity(value, value.graph.nodes, exact=self._exact))
        return content(value)

    def _value(self, node: Node) -> Hashable:
        if node.op == "output":
            return None
        value = fake(node)
        if self._exact:
            return describe(value)
        return (str(getattr(value, "dtype", type(value).__name__)), getattr(value, "ndim", None))


def content(value: Any) -> Hashable:
    """A hashable description of a constant: equal exactly when the constants are interchangeable in compiled code.

    1, 1.0 and True differ, as do 0.0 and -0.0. Tensors, functions, modules and other objects with a state of their own
    count by identity: equal content now may be unequal later.
    """
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return (type(value), str(size_expr(value)))
    if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
        return (type(value), repr(value))
    if isinstance(value, enum.Enum):
        return (type(value), value.name)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(content, value))
    if isinstance(value, Mapping):
        return (type(value), *((content(key), content(item)) for key, item in value.items()))
    if isinstance(value, (set, frozenset)):
        return (type(value), frozenset(map(content, value)))
    if isinstance(value, slice):
        return ("slice", *map(content, (value.start, value.stop, value.step)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, content(getattr(value, field.name))) for field in dataclasses.fields(value))
        return (type(value), *items)
    return Same(value)


def describe(value: Any) -> Hashable:
    """What compiled code may rely on in one of its values.

    Class, shape, strides (that of a dimension of size 1 is irrelevant), dtype, device, alignment of the offset, conj
    and neg bits and, for tensor subclasses, the inner tensors and the context that they are flattened with.
    """
    if isinstance(value, (tuple, list)):
        return (type(value), *map(describe, value))
    if isinstance(value, dict):
        return (dict, *((content(key), describe(item)) for key, item in value.items()))
    if not isinstance(value, Tensor):
        return content(value)
    shape = tuple(str(size_expr(size)) for size in value.shape)
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is not None:
        names, context = flatten()
        inner = tuple((name, describe(getattr(value, name))) for name in names)
        return (type(value), shape, value.dtype, str(value.device), value.requires_grad, inner, content(context))
    facts = (value.dtype, str(value.device), str(value.layout), value.requires_grad)
    if value.layout is not torch.strided:
        return (shape, *facts)
    strides = tuple("-" if size == "1" else str(size_expr(s)) for size, s in zip(shape, value.stride(), strict=True))
    aligned = same_size(value.storage_offset() * value.element_size() % 16, 0)
    return (shape, strides, *facts, aligned, value.is_conj(), value.is_neg())
