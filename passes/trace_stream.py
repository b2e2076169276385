"""Follows a residual stream backwards through a graph.

A transformer block computes ``x_out = x + f(x)``. Walking back from ``x_out`` along the ``x`` operand, through
additions and through operations that only move or cast data, leads to ``x``: the same stream before the block. Two
streams of equal shape never meet on such a walk unless they are concatenated; slices of a concatenation are resolved by
offset.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .facts import fake, is_item_of_tuple, numel_hint, same_size, size_expr

_ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_FIRST_OPERAND: set[Any] = {operator.sub, operator.isub, torch.sub, torch.addcmul, "sub", "sub_", "addcmul", "addcmul_"}
_MOVES: set[Any] = {
    torch.reshape, torch.flatten, torch.unflatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze,
    torch.clamp, torch.clip, torch.clone, torch.nn.functional.dropout, torch.split, torch.chunk,
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "view", "reshape", "flatten", "unflatten",
    "contiguous", "transpose", "permute", "squeeze", "unsqueeze", "clamp", "clip", "clone", "expand", "expand_as",
    "view_as", "reshape_as", "split", "chunk", "split_with_sizes", "movedim", "swapaxes", "detach", "narrow",
}  # fmt: skip
_ELEMENTWISE: set[Any] = {
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clamp", "clip", "clone", "detach",
    torch.clamp, torch.clip, torch.clone, torch.nn.functional.dropout,
}  # fmt: skip
_SPLITS: set[Any] = {torch.split, torch.chunk, "split", "chunk", "split_with_sizes"}


@dataclass(frozen=True)
class Window:
    """Elements ``start .. start + length`` of one dimension of a tensor."""

    dim: int
    start: Any
    length: Any


def leaves(value: Node, stop: Callable[[Node], bool], *, main_only: bool = False) -> list[Node]:
    """Nodes satisfying ``stop`` that the residual stream ending in ``value`` comes from, nearest first.

    Paths that reach an operation which mixes elements (a matrix product, a norm) end there without a leaf. With
    ``main_only`` a concatenation is left along its largest part only.
    """
    found: dict[Node, None] = {}
    seen: set[tuple[Node, Window | None]] = set()
    todo: list[tuple[Node, Window | None]] = [(value, None)]
    while todo:
        node, window = todo.pop(0)
        if (node, window) in seen:
            continue
        seen.add((node, window))
        if stop(node):
            found.setdefault(node)
        else:
            todo.extend(sources(node, window, main_only))
    return list(found)


def is_addition(node: Node) -> bool:
    return node.target in _ADDITIONS


def is_move(node: Node) -> bool:
    """Whether ``node`` only moves or casts data (slices, splits and concatenations aside)."""
    return node.target in _MOVES and node.target not in _SPLITS


def is_elementwise(node: Node) -> bool:
    """Whether ``node`` leaves every element where it is."""
    return node.target in _ELEMENTWISE


def sources(node: Node, window: Window | None, main_only: bool = False) -> Iterator[tuple[Node, Window | None]]:
    """What the elements of ``node`` inside ``window`` come from by one step back on the residual path."""
    target = node.target
    operands = [arg for arg in node.args if isinstance(arg, Node)]
    if node.op not in ("call_function", "call_method"):
        return
    if is_item_of_tuple(node):
        source = node.args[0]
        assert isinstance(source, Node)
        if source.op != "placeholder" and source.target in _SPLITS and isinstance(source.args[0], Node):
            yield source.args[0], _window_of_item(source, node.args[1])
        return
    if target is operator.getitem and operands:
        yield operands[0], _window_of_slice(node, window)
    elif target in _ADDITIONS:
        for operand in operands:
            if isinstance(fake(operand), torch.Tensor) and fake(operand).ndim == fake(node).ndim:
                yield operand, window
    elif target in _FIRST_OPERAND and operands:
        yield operands[0], window
    elif target in (torch.cat, torch.concat, torch.concatenate):
        yield from _parts(node, window, main_only)
    elif target in _MOVES and operands:
        yield operands[0], window if target in _ELEMENTWISE else None


def _window_of_slice(node: Node, outer: Window | None) -> Window | None:
    """``x[:, 3:]`` -> dimension 1 from 3 on; None when it is no plain slice along one dimension."""
    source, result = fake(node.args[0]), fake(node)  # type: ignore[arg-type]
    index = node.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if outer is not None or not isinstance(source, torch.Tensor) or source.ndim != result.ndim:
        return None
    if Ellipsis in index:
        place = index.index(Ellipsis)
        fill = source.ndim - len(index) + 1
        index = (*index[:place], *[slice(None)] * fill, *index[place + 1 :])
    cut = [(dim, item) for dim, item in enumerate(index) if isinstance(item, slice) and item != slice(None)]
    if len(cut) != 1 or not all(isinstance(item, slice) for item in index) or cut[0][1].step not in (None, 1):
        return None
    dim, item = cut[0]
    start = fake(item.start) if isinstance(item.start, Node) else item.start or 0
    if start is None or (isinstance(start, int) and start < 0):
        start = source.shape[dim] - result.shape[dim]  # a negative start keeps the end of the dimension
    return Window(dim, size_expr(start), size_expr(result.shape[dim]))


def _window_of_item(source: Node, item: Any) -> Window | None:
    parts, whole = fake(source), fake(source.args[0])  # type: ignore[arg-type]
    position = 2 if len(source.args) > 2 else None
    dim = source.kwargs.get("dim", source.args[position] if position else 0)
    if not isinstance(dim, int) or not isinstance(item, int):
        return None
    dim %= whole.ndim
    start: Any = 0
    for part in parts[:item]:
        start = start + part.shape[dim]
    return Window(dim, size_expr(start), size_expr(parts[item].shape[dim]))


def _parts(node: Node, window: Window | None, main_only: bool) -> Iterator[tuple[Node, Window | None]]:
    """The concatenated tensor that ``window`` selects, or all of them when it selects no single one."""
    tensors = node.args[0]
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = [part for part in tensors if isinstance(part, Node)]  # type: ignore[union-attr]
    if window is not None and isinstance(dim, int) and dim % fake(node).ndim == window.dim:
        offset: Any = 0
        for part in parts:
            length = fake(part).shape[window.dim]
            if same_size(offset, window.start) and same_size(length, window.length):
                yield part, None
                return
            offset = offset + length
    largest = max(map(numel_hint, parts), default=0)
    for part in parts:
        if not main_only or numel_hint(part) == largest:
            yield part, None
