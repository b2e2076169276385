"""Finds out whether a region can run on some rows of a batch only, and which of its inputs have rows.

region(h[B, L, D], temb[B, D], rotary[L, D], B, weights)      rows: h, temb; sizes: B
region(h[rows],    temb[rows], rotary,       n, weights)      the same rows of what region(h, ...) returns

Two questions. Rows can decide apart when the values that the guard compares, and those that leave the region, have the
batch as their outermost dimension. Dynamo may compile one function with a fixed batch and with a symbolic one, and
either graph may serve a call: the answer depends on sizes alone, so that both give the same.

Rows can be computed apart when every value in the region that is made from rows carries the batch, a symbol, in exactly
one dimension, so that no operation adds up, sorts or normalises over the batch. Otherwise the region runs on all rows,
and rows that reuse do not take its result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..compat import free_symbols
from .facts import fake, is_static_input, numel_hint, same_size, size_expr, size_hint
from .operators import OVER_A_DIM, target_name
from .plan import BatchRows, Region, RegionPlan


class _Mixed(Exception):
    """Rows depend on each other, or cannot be told apart; the message says why."""


def find_batch_rows(top: GraphModule, plan: RegionPlan) -> tuple[BatchRows | str, ...]:
    """For each region its ``BatchRows``, or the reason why its rows cannot decide apart.

    ``top`` is what ``insert_guard`` returned.
    """
    return tuple(_find(top, plan, region) for region in plan.regions)


def _find(top: GraphModule, plan: RegionPlan, region: Region) -> BatchRows | str:
    try:
        latents = _latents(plan)
        module = top.get_submodule(region.name)
        assert isinstance(module, GraphModule)
        _check_rows_decide(module, region, fake(latents).shape[0])
    except _Mixed as reason:
        return str(reason)
    try:
        return _rows_of_region(module, region, _batch_symbol(latents, top))
    except _Mixed as reason:
        return BatchRows((), (), str(reason))


def _latents(plan: RegionPlan) -> Node:
    latents = max(plan.clock_inputs.moving, key=numel_hint, default=None)
    if latents is None or fake(latents).ndim == 0:
        raise _Mixed("the graph has no latents whose first dimension could be the batch")
    return latents


def _check_rows_decide(module: GraphModule, region: Region, batch: Any) -> None:
    """Raises where a value that the guard compares, or that a forecast is made of, does not have the batch outermost.

    Strides count, too: those of an output must not depend on the batch, for its memory is laid out for another one.
    """
    outputs = next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]
    for node in [*outputs, *_watched(region)]:
        value = fake(node)
        if not isinstance(value, torch.Tensor) or not value.ndim or not same_size(value.shape[0], batch):
            raise _Mixed(f"{node.name} has no row for each sample of the batch")
        outermost, *others = map(size_hint, value.stride())
        if max(others, default=0) > outermost and (outermost or node in outputs):
            raise _Mixed(f"the batch is not the outermost dimension of {node.name}")


def _watched(region: Region) -> list[Node]:
    watched = [region.probe_entry, region.probe_value, *(exit.base for exit in region.exits)]
    return [value for value in watched if value is not None]


def _batch_symbol(latents: Node, top: GraphModule) -> Any:
    """The symbol of the batch size."""
    batch = size_expr(fake(latents).shape[0])
    if not getattr(batch, "is_symbol", False):
        raise _Mixed(
            f"the batch size {batch} is fixed in the compiled graph. Compile with dynamic=True, and let the first "
            "batch have a size that no other dimension has"
        )
    for node in top.graph.nodes:
        value = fake(node) if node.op == "placeholder" and not is_static_input(node) else None
        if isinstance(value, torch.Tensor) and any(_mentions(size, batch) for size in value.shape[1:]):
            raise _Mixed(
                f"{node.name} has another dimension of the size of the batch, and the graph cannot tell the two "
                "apart: compile with a batch size that no other dimension has"
            )
    return batch


def _rows_of_region(module: GraphModule, region: Region, batch: Any) -> BatchRows:
    nodes = list(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    tensors = [i for i, node in enumerate(inputs) if _has_rows(node, batch)]
    ints = [i for i, node in enumerate(inputs) if isinstance(fake(node), torch.SymInt)]
    sizes = [i for i in ints if _mentions(fake(inputs[i]), batch)]
    for i in sizes:
        if _mentions(size_expr(fake(inputs[i])) / batch, batch):
            raise _Mixed(f"the size {inputs[i].name} is no multiple of the batch size")
    made = {inputs[i] for i in tensors}
    for node in nodes:
        if node.op in ("call_function", "call_method") and not made.isdisjoint(node.all_input_nodes):
            values = _tensors(fake(node))
            for value in values:
                _check(node, value, batch)
            made |= {node} if values else set()
    outputs = next(node for node in reversed(nodes) if node.op == "output").args[0]
    for node in [*outputs, *_watched(region)]:
        if not _has_rows(node, batch):
            raise _Mixed(f"{node.name} has no row for each sample of the batch")
    return BatchRows(tuple(tensors), tuple(sizes))


def _has_rows(node: Node, batch: Any) -> bool:
    """Whether ``node`` is a tensor with one row per sample: the batch is its first dimension, and rows lie one after
    the other in memory, so that some of them have the strides that compiled code expects."""
    value = fake(node)
    if not isinstance(value, torch.Tensor) or not any(_mentions(size, batch) for size in value.shape):
        return False
    if size_expr(value.shape[0]) != batch or any(_mentions(n, batch) for n in (*value.shape[1:], *value.stride()[1:])):
        raise _Mixed(f"the batch is not the outermost dimension of {node.name}")
    return True


def _check(node: Node, value: torch.Tensor, batch: Any) -> None:
    """Raises where ``value``, made by ``node`` from rows, mixes them."""
    places = [i for i, size in enumerate(value.shape) if _mentions(size, batch)]
    name = target_name(node)
    if len(places) != 1 or _mentions(size_expr(value.shape[places[0]]) / batch, batch):
        raise _Mixed(f"{name} ({node.name}) combines the rows of the batch")
    if name in OVER_A_DIM and places[0] in _dims(node, value.ndim):
        raise _Mixed(f"{name} ({node.name}) runs over the batch")
    if name == "scaled_dot_product_attention" and places[0] == value.ndim - 2:
        raise _Mixed(f"{name} ({node.name}) lets the samples of the batch see each other")


def _dims(node: Node, ndim: int) -> Iterable[int]:
    """The dimensions that an operation over some dimension names; the last one where it names none."""
    given = [node.kwargs[key] for key in ("dim", "dims") if key in node.kwargs] or list(node.args[1:]) or [-1]
    flat = [d for item in given for d in (item if isinstance(item, (tuple, list)) else [item])]
    return {d % ndim for d in flat if isinstance(d, int)}


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def _mentions(size: Any, batch: Any) -> bool:
    expression = size_expr(size)
    return batch in (free_symbols(size) if isinstance(size, torch.SymInt) else getattr(expression, "free_symbols", ()))
