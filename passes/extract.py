"""Moves nodes of a Dynamo graph into a graph module of their own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Graph, GraphModule, Node

from ..compat import copy_dynamo_notes, copy_dynamo_source
from .draft import Draft
from .facts import external_inputs, fake, symbols_of


def extract(
    gm: GraphModule, nodes: Iterable[Node], outputs: Iterable[Node], name: str, kind: type[GraphModule] = GraphModule
) -> tuple[GraphModule, list[Node]]:
    """Copies ``nodes`` into a new module that returns the tuple ``outputs``.

    Returns the module, of class ``kind``, and the nodes of ``gm`` to call it with (see ``inputs_of``), in the order of
    its placeholders.

    Dynamo's notes to AOTAutograd travel along (``dynamo_compile_id``, ``_param_name_to_source``, ``_dynamo_source``,
    ``tensor_dict``): without them every weight would count as an input that changes.
    """
    nodes = list(nodes)
    inputs = inputs_of(gm, nodes)
    graph = Graph()
    env: dict[Node, Node] = {}
    for node in inputs:
        env[node] = placeholder_like(graph, node)
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in env:
                env[source] = graph.node_copy(source)
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[node] for node in outputs))
    return with_dynamo_meta(kind(gm, graph, class_name=name), gm), inputs


def inputs_of(gm: GraphModule, nodes: Iterable[Node]) -> list[Node]:
    """What a module of ``nodes`` must be given: values in order of first use, then the shape symbols that occur inside,
    because compiled code must be able to compute every size."""
    nodes = list(nodes)
    inputs = [node for node in external_inputs(nodes) if node.op != "get_attr"]
    return inputs + [node for node in _symbol_inputs(gm, [*inputs, *nodes]) if node not in inputs]


def duplicate(gm: GraphModule) -> GraphModule:
    """A copy of ``gm`` to work on; node metadata and Dynamo's notes are kept."""
    graph = Graph()
    env: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        env[node] = (
            placeholder_like(graph, node) if node.op == "placeholder" else graph.node_copy(node, env.__getitem__)
        )
    return with_dynamo_meta(Draft(gm, graph), gm)


def placeholder_like(graph: Graph, node: Node) -> Node:
    """A placeholder in ``graph`` that carries the name, metadata and Dynamo source of ``node``."""
    new = graph.placeholder(node.name)
    new.meta = dict(node.meta)
    copy_dynamo_source(new, node)
    return new


def with_dynamo_meta(new: GraphModule, gm: GraphModule) -> GraphModule:
    new.meta = dict(gm.meta)
    copy_dynamo_notes(new, gm)
    return new


def _symbol_inputs(gm: GraphModule, nodes: Iterable[Node]) -> list[Node]:
    given = [node for node in gm.graph.find_nodes(op="placeholder") if isinstance(fake(node), torch.SymInt)]
    if not given:
        return []
    wanted = symbols_of(fake(node) for node in nodes)
    return [node for node in given if fake(node).node.expr in wanted]
