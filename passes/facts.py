"""What a node of a Dynamo graph says about itself: shape, owner, symbols, storage.

Everything here reads metadata that TorchDynamo leaves on its nodes (``example_value``,
``nn_module_stack``, ``tensor_dict``); nothing runs the graph.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Graph, Node

from ..compat import free_symbols, free_unbacked_symbols, storage_id

_COMPONENT = re.compile(r"\['([^']+)'\]|\[(\d+)\]|\.([A-Za-z_]\w*)|\.(\d+)|^([A-Za-z_]\w*)")
_NOISE = {"_modules", "__dict__"}
STORAGE = "dit_cache_storage"  # the memory of a node whose fake value was traced for another


def fake(node: Node) -> Any:
    """The fake value Dynamo recorded for ``node`` (tensor, SymInt, tuple, ...) or None."""
    return node.meta.get("example_value")


def is_tensor(node: Node) -> bool:
    return isinstance(fake(node), torch.Tensor)


def is_float_tensor(node: Node) -> bool:
    value = fake(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def is_static_input(node: Node) -> bool:
    """True for placeholders that hold a parameter or buffer of the model, not an activation."""
    if node.op != "placeholder":
        return False
    tensor_dict = node.meta.get("tensor_dict") or {}
    return bool(tensor_dict.get("_dynamo_static_input_type")) or isinstance(fake(node), torch.nn.Parameter)


@lru_cache(maxsize=1 << 16)
def module_path(text: str) -> tuple[str, ...]:
    """``L['self'].__dict__['_modules']['blocks'].3.attn`` -> ``('L', 'self', 'blocks', '3', 'attn')``."""
    parts = (next(group for group in match.groups() if group) for match in _COMPONENT.finditer(text))
    return tuple(part for part in parts if part not in _NOISE)


def module_stack(node: Node) -> list[tuple[tuple[str, ...], str]]:
    """Modules that were running when ``node`` was traced, outermost first: (path, class name)."""
    stack = node.meta.get("nn_module_stack") or {}
    result = []
    for path, cls in stack.values():
        name = cls if isinstance(cls, str) else cls.__name__
        result.append((module_path(path), name.rsplit(".", 1)[-1]))
    return result


def size_expr(value: Any) -> Any:
    """The sympy expression of a symbolic size (hashable, comparable without a guard); ints stay ints."""
    return value.node.expr if isinstance(value, (torch.SymInt, torch.SymFloat)) else value


def same_size(left: Any, right: Any) -> bool:
    """Equality of two ints or SymInts without installing a guard."""
    return bool(size_expr(left) == size_expr(right))


def same_shape(left: Node, right: Node) -> bool:
    """True when both nodes hold tensors of provably equal shape and dtype."""
    a, b = fake(left), fake(right)
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return a.dtype == b.dtype and a.ndim == b.ndim and all(map(same_size, a.shape, b.shape))


def may_fit(left: Node, right: Node) -> bool:
    """True when both nodes hold tensors of one dtype whose sizes are equal, or may be: data-dependent sizes
    (unbacked symbols) get a new name at every slice, so equal ones cannot always be proven so."""
    a, b = fake(left), fake(right)
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)) or a.dtype != b.dtype or a.ndim != b.ndim:
        return False
    pairs = zip(a.shape, b.shape, strict=True)
    return all(same_size(x, y) or bool(free_unbacked_symbols([x, y])) for x, y in pairs)


def size_hint(size: Any) -> int:
    """A size or stride as it is in the example."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else 1 << 13
    return int(size)


def numel_hint(node: Node) -> int:
    """Number of elements with the sizes of the example, 0 for what is no tensor."""
    value = fake(node)
    if not isinstance(value, torch.Tensor):
        return 0
    total = 1
    for size in value.shape:
        total *= size_hint(size)
    return total


def nbytes_hint(node: Node) -> int:
    value = fake(node)
    return numel_hint(node) * value.element_size() if isinstance(value, torch.Tensor) else 0


def symbols_of(values: Iterable[Any]) -> set[Any]:
    """Free shape symbols of tensors and SymInts."""
    found: set[Any] = set()
    for value in values:
        if isinstance(value, (tuple, list)):
            found |= symbols_of(value)
        elif isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat)):
            found |= set(free_symbols(value))
    return found


def storage(node: Node) -> Hashable:
    """Names the memory behind a node's tensor: equal for views of one tensor. None for what is no plain tensor."""
    if STORAGE in node.meta:
        return node.meta[STORAGE]
    value = fake(node)
    if not isinstance(value, torch.Tensor) or hasattr(value, "__tensor_flatten__"):
        return None
    return storage_id(value)


def positions(graph: Graph) -> dict[Node, int]:
    return {node: i for i, node in enumerate(graph.nodes)}


def is_item_of_tuple(node: Node) -> bool:
    """``operator.getitem`` on a tuple, list or size that a node returned (not a tensor slice)."""
    return (
        node.op == "call_function"
        and node.target is operator.getitem
        and isinstance(node.args[0], Node)
        and isinstance(fake(node.args[0]), (tuple, list))
    )


def cuts_of(index: Any, ndim: int) -> list[tuple[int, Any]]:
    """The dimensions that ``x[index]`` does not take whole, each with its part of the index."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        place = index.index(Ellipsis)
        index = (*index[:place], *[slice(None)] * (ndim - len(index) + 1), *index[place + 1 :])
    return [(dim, item) for dim, item in enumerate(index) if not isinstance(item, slice) or item != slice(None)]


def external_inputs(nodes: Iterable[Node]) -> list[Node]:
    """Values that ``nodes`` read but do not define, in order of first use."""
    inside = set(nodes)
    seen: dict[Node, None] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in inside:
                seen.setdefault(source)
    return list(seen)


def external_outputs(nodes: Iterable[Node]) -> list[Node]:
    """Values that ``nodes`` define and somebody else reads, in order of definition."""
    inside = set(nodes)
    return [node for node in nodes if any(user not in inside for user in node.users)]
