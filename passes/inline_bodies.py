"""Writes bodies that Dynamo keeps in sub-graphs into the graph: of gradient checkpoints, and of regions.

before:  body = self.subgraph_0; t = invoke_subgraph(body, "subgraph_0", x, w1); y = t[0]
         body = self.subgraph_0; t = invoke_subgraph(body, "subgraph_0", y, w2); z = t[0]
after:   y = x + linear(x, w1)        of blocks.0
         z = y + linear(y, w2)        of blocks.1

A region that is called several times (``torch.compiler.nested_compile_region``) was traced once. Its nodes name the
module and the memory of the first call; each copy here gets those of its own call.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..compat import is_checkpoint, is_region
from .facts import STORAGE, fake, is_item_of_tuple, storage
from .identity import describe


class RegionMismatch(Exception):
    """A region was reused for inputs of another layout than those it was traced with."""


def inline_bodies(gm: GraphModule) -> GraphModule:
    """Without gradients a body is a plain part of the graph; hidden in it would be blocks, writes and random numbers.

    Raises:
        RegionMismatch: the sub-graph of a region does not fit the operands of a call.
    """
    first: dict[str, Node] = {}  # sub-graph -> the call that it was traced for
    memory: dict[Hashable, Hashable] = {}  # of the outputs of calls, as Dynamo has made them up -> what it is
    numbers = itertools.count()
    while calls := [node for node in gm.graph.nodes if is_checkpoint(node) or is_region(node)]:
        for node in calls:
            _inline(gm, node, first, next(numbers), memory)
    for node in gm.graph.nodes if memory else ():
        if storage(node) in memory:
            node.meta[STORAGE] = memory[storage(node)]
    return gm


def _inline(gm: GraphModule, node: Node, first: dict[str, Node], number: int, memory: dict[Hashable, Hashable]) -> None:
    reference: Any = node.args[0]
    name = str(reference.target)
    body: Any = getattr(gm, name)
    operands = list(node.args[2:] if is_region(node) else node.args[1:])
    placeholders = list(body.graph.find_nodes(op="placeholder"))
    copy = _Copy(node, first.setdefault(name, node), placeholders, operands, number, memory)
    if is_region(node):
        copy.check()
    env: dict[Node, Any] = dict(zip(placeholders, operands, strict=True))
    results: Any = ()
    with gm.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "get_attr":
                path = f"{name}_{inner.target}".replace(".", "_")
                setattr(gm, path, getattr(body, str(inner.target)))
                env[inner] = gm.graph.get_attr(path)
                env[inner].meta = dict(inner.meta)
            elif inner.op == "output":
                results = torch.fx.node.map_arg(inner.args[0], env.__getitem__)
            elif inner.op != "placeholder":
                env[inner] = gm.graph.node_copy(inner, env.__getitem__)
                copy.describe(env[inner])
    for user in list(node.users):
        assert is_item_of_tuple(user)
        place: Any = user.args[1]
        result = results[place]
        if is_region(node):
            made_up, result = storage(user), _without_clone(result)
            memory[made_up] = storage(result)
        user.replace_all_uses_with(result)
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)
    for result in results:  # clones that nobody reads
        if isinstance(result, Node) and not result.users and result.op == "call_method" and result.target == "clone":
            gm.graph.erase_node(result)
    if not reference.users:
        gm.graph.erase_node(reference)


def _without_clone(result: Any) -> Any:
    """What ``result`` is a copy of, where the copy only keeps an output of a region apart from its inputs.

    A copy with other strides stays: what follows was traced with them. It counts as the memory that it is a copy of, so
    that a block that writes into what it returns is refused.
    """
    if not isinstance(result, Node) or result.op != "call_method" or result.target != "clone" or len(result.args) > 1:
        return result
    source = result.args[0]
    assert isinstance(source, Node)
    if describe(fake(source)) == describe(fake(result)):
        return source
    result.meta[STORAGE] = storage(source)
    return result


class _Copy:
    """Metadata of the nodes of one call."""

    def __init__(
        self,
        call: Node,
        first: Node,
        placeholders: list[Node],
        operands: list[Any],
        number: int,
        memory: dict[Hashable, Hashable],
    ) -> None:
        self._number = number
        self._pairs = [(a, b) for a, b in zip(placeholders, operands, strict=True) if isinstance(b, Node)]
        self._memory = {storage(inner): memory.get(storage(outer), storage(outer)) for inner, outer in self._pairs}
        self._here = dict(call.meta.get("nn_module_stack") or {})
        self._there = dict(first.meta.get("nn_module_stack") or {})
        self._moved = call is not first
        if self._here and self._there:
            self._paths = (list(self._there.values())[-1][0], list(self._here.values())[-1][0])

    def check(self) -> None:
        for inner, outer in self._pairs:
            if describe(fake(inner)) != describe(fake(outer)):
                raise RegionMismatch(f"{outer.name}: {describe(fake(outer))} where {describe(fake(inner))} was traced")

    def describe(self, node: Node) -> None:
        """Gives ``node``, copied from the body, the memory and the modules of this call."""
        node.meta = dict(node.meta)
        where = storage(node)
        if where is not None:
            node.meta[STORAGE] = self._memory.get(where, (self._number, where))
        stack = node.meta.get("nn_module_stack")
        if self._moved and stack and self._here and self._there:
            node.meta["nn_module_stack"] = {**self._here, **dict(self._below(stack))}

    def _below(self, stack: dict[str, Any]) -> Iterator[tuple[Hashable, Any]]:
        """The modules inside the one that was called."""
        there, here = self._paths
        for key, (path, cls) in stack.items():
            if key not in self._there:
                yield key, (here + path.removeprefix(there), cls)
