"""Cuts the graph around its regions and puts a guard before each.

before:  x -> embed -> block 0 -> block 1 -> ... -> block N-1 -> head -> y

after:   front = self.front(x)                                   # embed, block 0
         decision = guard(step, 0, entry, value)
         region = compute_or_forecast(decision, self.region_0, operands, bases)
         y = self.tail(region)                                   # head
"""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from .draft import Draft
from .extract import extract, placeholder_like, with_dynamo_meta
from .facts import external_outputs
from .guard_ops import compute_or_forecast, guard
from .plan import PART, Block, Part, RegionPlan


def insert_guard(gm: GraphModule, plan: RegionPlan) -> GraphModule:
    """Returns the top-level graph; its first input is the runtime's ``step``, the others are those of ``gm``.

    Every computing node of ``gm`` and its copies in the segments are marked with their ``Part``. Whether the cuts are
    legal is checked afterwards (``check_cuts``).
    """
    order = [node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    place = {node: i for i, node in enumerate(gm.graph.nodes)}
    segments = _segments(order, place, plan)
    _mark_parts(segments, plan)

    graph = Graph()
    root = GraphModule({}, Graph())
    step = graph.placeholder("step")
    env: dict[Node, Any] = {n: placeholder_like(graph, n) for n in gm.graph.nodes if n.op == "placeholder"}
    watched = {region.probe_entry for region in plan.regions} | {region.probe_value for region in plan.regions}
    watched |= {exit.base for region in plan.regions for exit in region.exits}
    for name, nodes, number in segments:
        if number is not None:
            outputs = [exit.node for exit in plan.regions[number].exits]
        else:
            leaving = watched.union(external_outputs(nodes))
            outputs = [node for node in nodes if node in leaving]
        module, inputs = extract(gm, nodes, outputs, name, Draft)
        setattr(root, name, module)
        operands = tuple(env[node] for node in inputs)
        if number is None:
            result = graph.call_module(name, operands)
        else:
            region = plan.regions[number]
            entry = env[region.probe_entry] if region.probe_entry is not None else None
            args = (step, number, entry, env[region.probe_value])
            decision = graph.create_node("call_function", guard, args, name=f"decision_{number}")
            bases = tuple(env[exit.base] if exit.base is not None else None for exit in region.exits)
            module_ref = graph.get_attr(name)
            result = graph.call_function(compute_or_forecast, (decision, module_ref, operands, bases))
        for i, node in enumerate(outputs):
            env[node] = graph.create_node("call_function", operator.getitem, (result, i), name=node.name)
            env[node].meta = dict(node.meta)
    results = next(node for node in reversed(gm.graph.nodes) if node.op == "output").args[0]
    graph.output(map_arg(results, lambda node: env[node] if node in env else _constant(graph, root, gm, node)))
    return with_dynamo_meta(GraphModule(root, graph, class_name="DitCache"), gm)


def _constant(graph: Graph, root: GraphModule, gm: GraphModule, node: Node) -> Node:
    """A constant that the model returns as it is."""
    setattr(root, str(node.target), getattr(gm, str(node.target)))
    return graph.get_attr(str(node.target))


Segment = tuple[str, list[Node], int | None]


def _segments(order: list[Node], place: dict[Node, int], plan: RegionPlan) -> list[Segment]:
    """Parts that always run and regions (with their numbers): front, region_0, between_0, region_1, ..., tail."""
    hoisted = set[Node]().union(*(region.hoisted for region in plan.regions))
    pulled = set[Node]().union(*(region.pulled for region in plan.regions))
    segments: list[Segment] = []
    begin = 0
    for number, region in enumerate(plan.regions):
        always = [node for node in order if begin <= place[node] < region.start and node not in pulled]
        always += [node for node in order if node in region.hoisted]
        elsewhere = hoisted | pulled
        inside = [node for node in order if region.start <= place[node] < region.stop and node not in elsewhere]
        inside += [node for node in order if node in region.pulled]
        segments += [("front" if number == 0 else f"between_{number - 1}", always, None), (region.name, inside, number)]
        begin = region.stop
    segments.append(("tail", [node for node in order if begin <= place[node] and node not in pulled], None))
    return [segment for segment in segments if segment[1]]


def _mark_parts(segments: list[Segment], plan: RegionPlan) -> None:
    """Every block is a part of its own, and so is each stretch of nodes between two blocks."""
    owner = {node: block for block in plan.chain for node in block.nodes}
    hoisted = set[Node]().union(*(region.hoisted for region in plan.regions))
    pulled = set[Node]().union(*(region.pulled for region in plan.regions))
    for segment, nodes, region in segments:
        parts: dict[object, Part] = {}
        glue = 0
        previous: object = None
        for node in nodes:
            key: object = "hoisted" if node in hoisted else "pulled" if node in pulled else owner.get(node)
            if key is None:
                glue += not isinstance(previous, int)
                key = glue
            if key not in parts:
                name = key.name if isinstance(key, Block) else f"{segment}.{key if isinstance(key, str) else 'glue'}"
                parts[key] = Part(name, skippable=region is not None, moved=key == "hoisted")
            node.meta[PART] = parts[key]
            previous = key
