"""Splits a segment into its blocks and keeps one copy of those that are structurally identical.

before:  region_0(h, w1, w2, w3) = [all nodes of blocks 1, 2, 3]
after:   h = self.block(h, w1); h = self.block(h, w2); h = self.block(h, w3)

With ``whole`` a segment stays one piece: more to compile, but fewer calls for the host and no kernel boundary between
blocks, which is what counts where the device waits for the host.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from torch.fx import Graph, GraphModule, Node

from .canonical import canonical_form
from .extract import extract, inputs_of, placeholder_like, with_dynamo_meta
from .facts import external_outputs
from .insert_guard import PIECE


class Outliner:
    """Holds the unique pieces of one top-level graph; segments share them.

    Two pieces are one when their canonical forms are equal node by node, with shapes, strides, dtypes, devices and
    subclass metadata; a hash is never trusted alone (equality of the forms is what the dictionary compares).
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self.pieces: dict[str, GraphModule] = {}
        self.uses: dict[str, list[str]] = {}
        self._outputs: dict[Any, list[int]] = {}
        self._names: dict[Any, str] = {}

    def outline(self, top: GraphModule) -> GraphModule:
        """Replaces every segment of ``top`` by calls of unique pieces (in place) and returns ``top``."""
        segments = {name: module for name, module in top.named_children() if isinstance(module, GraphModule)}
        stretches = {
            name: [(canonical_form(nodes, exact=True), nodes) for nodes in self._stretches(segment)]
            for name, segment in segments.items()
        }
        for key, nodes in itertools.chain.from_iterable(stretches.values()):
            # a block whose last output nobody reads is still the same block: outputs are the union over all uses
            place = {node: i for i, node in enumerate(nodes)}
            used = [place[node] for node in external_outputs(nodes)]
            self._outputs[key] = sorted({*self._outputs.get(key, ()), *used})
        for name, segment in segments.items():
            setattr(top, name, self._rebuild(name, segment, stretches[name]))
        return top

    def _rebuild(self, name: str, segment: GraphModule, stretches: list[tuple[Any, list[Node]]]) -> GraphModule:
        graph = Graph()
        root = GraphModule({}, Graph())
        env = {node: placeholder_like(graph, node) for node in segment.graph.nodes if node.op == "placeholder"}
        for key, nodes in stretches:
            outputs = [nodes[i] for i in self._outputs[key]]
            inputs = inputs_of(segment, nodes)
            unique = self._names.setdefault(key, nodes[0].meta[PIECE])
            if unique not in self.pieces:
                self.pieces[unique], _ = extract(segment, nodes, outputs, "piece")
            self.uses.setdefault(unique, []).append(nodes[0].meta[PIECE])
            setattr(root, unique, self.pieces[unique])
            result = graph.call_module(unique, tuple(env[node] for node in inputs))
            for i, node in enumerate(outputs):
                env[node] = graph.call_function(operator.getitem, (result, i))
                env[node].meta = dict(node.meta)
        output = next(node for node in reversed(segment.graph.nodes) if node.op == "output")
        graph.output(tuple(env[node] for node in output.args[0]))
        for node in reversed(list(graph.nodes)):
            if node.target is operator.getitem and not node.users:
                graph.erase_node(node)
        return with_dynamo_meta(GraphModule(root, graph, class_name=name), segment)

    def _stretches(self, segment: GraphModule) -> list[list[Node]]:
        """Consecutive nodes of one piece."""
        nodes = [node for node in segment.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
        groups = itertools.groupby(nodes, key=lambda node: None if self._whole else node.meta[PIECE])
        return [list(group) for _, group in groups]
