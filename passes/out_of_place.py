"""Replaces in-place operations by their ordinary forms where nobody can tell the difference.

before:  y = operator.iadd(x, a)      # x is overwritten
after:   y = operator.add(x, a)       # later readers of x read y

before:  x[:, 3:] = a                 # a part of x is overwritten
after:   y = torch.slice_scatter(x, a, 1, 3)

A block that ends in ``x += f(x)`` writes into a tensor of the block before. Once the two are pieces of their own, or
one is skipped, that write would reach across a cut; out of place it is an edge of the graph like any other. Within a
piece the compiler decides by itself what to overwrite.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from .facts import cuts_of, fake, positions, same_size, storage
from .operators import FUNCTIONAL, FUNCTIONAL_METHODS


def out_of_place(gm: GraphModule) -> GraphModule:
    """Rewrites ``gm`` in place and returns it. What has another reader afterwards, or is an input, stays as it is."""
    place = positions(gm.graph)
    sharing: dict[Hashable, list[Node]] = {}
    for node in gm.graph.nodes:
        where = storage(node)
        if where is not None:
            sharing.setdefault(where, []).append(node)
    for node in list(gm.graph.nodes):
        if node.target is operator.setitem:
            _scatter(node, sharing, place)
            continue
        ordinary = (FUNCTIONAL if node.op == "call_function" else FUNCTIONAL_METHODS).get(node.target)
        if ordinary is None or not isinstance(node.args[0], Node) or not isinstance(fake(node.args[0]), torch.Tensor):
            continue
        target = node.args[0]
        if _is_private(node, sharing.get(storage(target), []), place) and _same_result(node, ordinary):
            node.target = ordinary
            for user in [user for user in target.users if place[user] > place[node]]:
                user.replace_input_with(target, node)
    return gm


def _scatter(write: Node, sharing: dict[Hashable, list[Node]], place: dict[Node, int]) -> None:
    """``x[:, a:b] = value`` of a tensor that nobody else looks at becomes ``torch.slice_scatter``."""
    target, index, value = write.args
    if not isinstance(target, Node) or not isinstance(value, Node) or not isinstance(fake(target), torch.Tensor):
        return
    cuts = cuts_of(index, fake(target).ndim)
    if len(cuts) != 1 or not isinstance(cuts[0][1], slice) or cuts[0][1].step not in (None, 1):
        return
    same = fake(value).ndim == fake(target).ndim and fake(value).dtype == fake(target).dtype
    if not same or not _is_private(write, sharing.get(storage(target), []), place):
        return
    dim, item = cuts[0]
    with write.graph.inserting_before(write):
        new = write.graph.call_function(torch.slice_scatter, (target, value, dim, item.start, item.stop))
    place[new] = place[write]
    new.meta = {**write.meta, "example_value": fake(target)}
    for user in [user for user in target.users if user is not new and place[user] > place[write]]:
        user.replace_input_with(target, new)
    write.graph.erase_node(write)


def _is_private(write: Node, aliases: list[Node], place: dict[Node, int]) -> bool:
    """Whether nobody but the readers of the written tensor itself looks at its memory after ``write``."""
    target = write.args[0]
    if target not in aliases:
        return False
    if any(alias.op in ("placeholder", "get_attr") for alias in aliases):
        return False
    others = [alias for alias in aliases if alias is not target and place[alias] < place[write]]
    return all(place[user] <= place[write] for alias in others for user in alias.users)


def _same_result(write: Node, ordinary: Any) -> bool:
    """Whether the ordinary form gives the dtype, shape and strides that the graph was traced with."""
    args: Any = map_arg(write.args, fake)
    kwargs: Any = map_arg(write.kwargs, fake)
    try:
        result = getattr(args[0], ordinary)(*args[1:], **kwargs) if isinstance(ordinary, str) else ordinary(*args)
    except (RuntimeError, TypeError):
        return False
    known = fake(write)
    return (
        result.dtype == known.dtype
        and result.ndim == known.ndim
        and all(map(same_size, result.shape, known.shape))
        and all(map(same_size, result.stride(), known.stride()))
    )
