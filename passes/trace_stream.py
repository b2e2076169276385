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

from .facts import cuts_of, fake, is_item_of_tuple, numel_hint, same_size, size_expr
from .operators import ADDITIONS, CONCATENATIONS, ELEMENTWISE, FIRST_OPERAND, MOVES, SPLITS


@dataclass(frozen=True)
class Window:
    """Elements ``start .. start + length`` of one dimension of a tensor."""

    dim: int
    start: Any
    length: Any


SOMEWHERE = Window(-1, None, None)  # a part of the tensor, not known which


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
    return node.target in ADDITIONS


def is_move(node: Node) -> bool:
    """Whether ``node`` only moves or casts data (slices, splits and concatenations aside)."""
    return node.target in MOVES and node.target not in SPLITS


def is_elementwise(node: Node) -> bool:
    """Whether ``node`` leaves every element where it is."""
    return node.target in ELEMENTWISE


def sources(node: Node, window: Window | None, main_only: bool = False) -> Iterator[tuple[Node, Window | None]]:
    """What the elements of ``node`` inside ``window`` come from by one step back on the residual path."""
    target = node.target
    operands = [arg for arg in node.args if isinstance(arg, Node)]
    if node.op not in ("call_function", "call_method"):
        return
    if is_item_of_tuple(node):
        source = node.args[0]
        assert isinstance(source, Node)
        if source.op != "placeholder" and source.target in SPLITS and isinstance(source.args[0], Node):
            yield source.args[0], _inside(_window_of_item(source, node.args[1]), window)
        return
    if target is operator.getitem and operands:
        yield operands[0], _inside(_window_of_slice(node), window)
    elif target in ADDITIONS:
        for operand in operands:
            if isinstance(fake(operand), torch.Tensor) and fake(operand).ndim == fake(node).ndim:
                yield operand, window
    elif target in FIRST_OPERAND and operands:
        yield operands[0], window
    elif target in CONCATENATIONS:
        yield from _parts(node, window, main_only)
    elif target in MOVES and operands:
        yield operands[0], window if target in ELEMENTWISE or window is None else SOMEWHERE


def _inside(outer: Window | None, inner: Window | None) -> Window | None:
    """The elements of a tensor that ``inner`` selects from what ``outer`` has selected."""
    if outer is None or inner is None:
        return outer or inner
    if outer.dim != inner.dim or SOMEWHERE in (outer, inner):
        return SOMEWHERE
    return Window(outer.dim, outer.start + inner.start, inner.length)


def _window_of_slice(node: Node) -> Window | None:
    """``x[:, 3:]`` -> dimension 1 from 3 on; None for all of ``x``."""
    source, result = fake(node.args[0]), fake(node)  # type: ignore[arg-type]
    if not isinstance(source, torch.Tensor) or source.ndim != result.ndim:
        return SOMEWHERE
    cuts = cuts_of(node.args[1], source.ndim)
    if not cuts:
        return None
    dim, item = cuts[0]
    if len(cuts) != 1 or not isinstance(item, slice) or item.step not in (None, 1):
        return SOMEWHERE
    length = source.shape[dim]
    start, stop = _bound(item.start, length, 0), _bound(item.stop, length, length)
    if isinstance(start, int) and isinstance(stop, int):
        return Window(dim, start, max(stop - start, 0))
    return Window(dim, size_expr(start), size_expr(stop) - size_expr(start))


def _bound(bound: Any, length: Any, default: Any) -> Any:
    """One end of a slice, counted from the start of the dimension."""
    bound = fake(bound) if isinstance(bound, Node) else bound
    if bound is None:
        return default
    if isinstance(bound, int) and isinstance(length, int):
        return min(bound, length) if bound >= 0 else max(bound + length, 0)
    expr = size_expr(bound)
    negative = expr < 0 if isinstance(expr, int) else expr.could_extract_minus_sign()  # sizes are not negative
    return size_expr(length) + expr if negative else expr


def _window_of_item(source: Node, item: Any) -> Window | None:
    parts, whole = fake(source), fake(source.args[0])  # type: ignore[arg-type]
    position = 2 if len(source.args) > 2 else None
    dim = source.kwargs.get("dim", source.args[position] if position else 0)
    if not isinstance(dim, int) or not isinstance(item, int):
        return SOMEWHERE
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
    across = window is None or not isinstance(dim, int) or dim % fake(node).ndim != window.dim
    if window is not None and not across:
        offset: Any = 0
        for part in parts:
            length = size_expr(fake(part).shape[window.dim])
            if same_size(offset, window.start) and same_size(length, window.length):
                yield part, None
                return
            if _is_within(window, offset, length):
                yield part, Window(window.dim, window.start - offset, window.length)
                return
            offset = offset + length
    largest = max(map(numel_hint, parts), default=0)
    for part in parts:
        if not main_only or numel_hint(part) == largest:
            yield part, window if across else SOMEWHERE


def _is_within(window: Window, offset: Any, length: Any) -> bool:
    numbers = (window.start, window.length, offset, length)
    return all(isinstance(n, int) for n in numbers) and offset <= window.start <= offset + length - window.length
