"""Splits a segment into its blocks and keeps one copy of those that are the same code.

before:  region_0(h, w1, w2, w3) = [all nodes of blocks 1, 2, 3]
after:   h = self.block(h, w1); h = self.block(h, w2); h = self.block(h, w3)

With ``whole`` a segment stays one piece: more to compile, but fewer calls for the host and no kernel boundary between
blocks, which is what counts where the device waits for the host.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Hashable
from dataclasses import dataclass

from torch.fx import Graph, GraphModule, Node

from .extract import extract, inputs_of, placeholder_like, with_dynamo_meta
from .facts import external_outputs
from .identity import identity
from .plan import PART, Part


@dataclass(frozen=True)
class PieceCall:
    """One use of a piece: where, and with which values (nodes of the segment)."""

    piece: str
    parts: tuple[Part, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @property
    def where(self) -> str:
        """The part's name, or the first and last of several."""
        return " to ".join(dict.fromkeys((self.parts[0].name, self.parts[-1].name)))

    @property
    def skippable(self) -> bool:
        return self.parts[0].skippable

    @property
    def moved(self) -> bool:
        return self.parts[0].moved


class Outliner:
    """The unique pieces of one graph; all segments of all its cuts share them.

    Two stretches of nodes are one piece when their identities are equal (see ``identity``). Names are made for dumps
    and are unique; nothing is looked up by a name that a model has given.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self.pieces: dict[str, GraphModule] = {}
        self.calls: list[PieceCall] = []
        self._outputs: dict[Hashable, list[int]] = {}
        self._names: dict[Hashable, str] = {}

    def outline(self, *tops: GraphModule) -> list[list[PieceCall]]:
        """Replaces every segment of ``tops``, the cuts of one graph, by calls of unique pieces (in place).

        Returns the calls of each cut, in order of execution.
        """
        segments = [
            (top, name, module, [(identity(module, nodes), nodes) for nodes in self._stretches(module)])
            for top in tops
            for name, module in top.named_children()
            if isinstance(module, GraphModule)
        ]
        for key, nodes in itertools.chain.from_iterable(stretches for *_, stretches in segments):
            # a block whose last output nobody reads is still the same block: outputs are the union over all uses
            place = {node: i for i, node in enumerate(nodes)}
            used = [place[node] for node in external_outputs(nodes)]
            self._outputs[key] = sorted({*self._outputs.get(key, ()), *used})
        calls: dict[int, list[PieceCall]] = {id(top): [] for top in tops}
        for top, name, module, stretches in segments:
            before = len(self.calls)
            setattr(top, name, self._rebuild(name, module, stretches))
            calls[id(top)] += self.calls[before:]
        return list(calls.values())

    def uses(self) -> dict[str, list[str]]:
        """For each piece the names of the parts that it runs as."""
        found: dict[str, dict[str, None]] = {}
        for call in self.calls:
            found.setdefault(call.piece, {})[call.where] = None
        return {piece: list(names) for piece, names in found.items()}

    def _rebuild(self, name: str, segment: GraphModule, stretches: list[tuple[Hashable, list[Node]]]) -> GraphModule:
        graph = Graph()
        root = GraphModule({}, Graph())
        env = {node: placeholder_like(graph, node) for node in segment.graph.nodes if node.op == "placeholder"}
        for key, nodes in stretches:
            outputs = [nodes[i] for i in self._outputs[key]]
            inputs = inputs_of(segment, nodes)
            unique = self._piece(key, segment, nodes, outputs)
            parts = tuple(dict.fromkeys(node.meta[PART] for node in nodes))
            self.calls.append(PieceCall(unique, parts, tuple(inputs), tuple(outputs)))
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

    def _piece(self, key: Hashable, segment: GraphModule, nodes: list[Node], outputs: list[Node]) -> str:
        """The name of the piece with identity ``key``, which is made at its first use."""
        name = self._names.get(key)
        if name is None:
            name = base = re.sub(r"\W", "_", nodes[0].meta[PART].name)
            for number in itertools.count(2):
                if name not in self.pieces:
                    break
                name = f"{base}_{number}"
            self._names[key] = name
            self.pieces[name], _ = extract(segment, nodes, outputs, "piece")
        return name

    def _stretches(self, segment: GraphModule) -> list[list[Node]]:
        """Consecutive nodes of one piece."""
        nodes = [node for node in segment.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
        groups = itertools.groupby(nodes, key=lambda n: n.meta[PART].moved if self._whole else n.meta[PART])
        return [list(group) for _, group in groups]
