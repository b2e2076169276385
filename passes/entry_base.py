"""Expresses a stream where it leaves a region by what it was where it entered.

Where streams are joined on the way, no single value at the entry has the shape of what comes out:

entry:   text, image -> double blocks -> cat([text, image]) -> single blocks -> exit
base:    cat([text, image]) of the entry values

The residual path of the exit is walked back to the entry; of what happens on it, additions are left out (they are the
residual) and what only moves data (cat, slices, reshapes) is repeated on the entry values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .facts import fake, may_fit
from .operators import CONCATENATIONS
from .trace_stream import SOMEWHERE, Window, is_addition, is_elementwise, is_move, sources


class EntryBase:
    """Builds bases for the exits of one region.

    ``entry`` are the streams at the region's entry, ``before`` is the first node of the region: new nodes go before it.
    """

    def __init__(self, graph: Graph, entry: set[Node], place: dict[Node, int], before: Node) -> None:
        self._graph, self._entry, self._place, self._before = graph, entry, place, before
        self._known: dict[tuple[Node, Window | None], Node | None] = {}
        self.made: list[Node] = []

    def of(self, value: Node) -> Node | None:
        """The base of ``value``, a node before the region; None where its residual path does not lead to the entry."""
        base = self._rebuild(value, None)
        return base if base is not None and may_fit(base, value) else None

    def _is_before(self, node: Node) -> bool:
        return self._place.get(node, -1) < self._place[self._before]

    def _rebuild(self, node: Node, window: Window | None) -> Node | None:
        key = (node, window)
        if key not in self._known:
            self._known[key] = None  # while under way
            self._known[key] = self._walk(node, window)
        return self._known[key]

    def _walk(self, node: Node, window: Window | None) -> Node | None:
        if window is SOMEWHERE:
            return None
        if self._is_before(node):
            return self._cut(node, window) if node in self._entry else None
        steps = list(sources(node, window))
        if is_addition(node):
            bases = {base for source, inner in steps if (base := self._rebuild(source, inner)) is not None}
            return bases.pop() if len(bases) == 1 else None
        if not steps:
            return None
        if node.target in CONCATENATIONS:
            if len(steps) == 1 and window is not None:
                return self._rebuild(*steps[0])
            parts = [source if self._is_before(source) else self._rebuild(source, None) for source, _ in steps]
            if None in parts:
                return None
            return self._cut(self._call(node, dict(zip((s for s, _ in steps), parts, strict=True))), window)
        source, inner = steps[0]
        if is_move(node):
            if is_elementwise(node):
                return self._rebuild(source, inner)
            return self._cut(self._repeat(node, source), window)
        base = self._rebuild(source, inner)  # a slice, or an item of a split
        if (base is None or not may_fit(base, node)) and window is None:
            return self._repeat(node, source)
        return base

    def _repeat(self, node: Node, source: Node) -> Node | None:
        base = self._rebuild(source, None)
        return self._call(node, {source: base}) if base is not None else None

    def _cut(self, node: Node | None, window: Window | None) -> Node | None:
        if node is None or window is None:
            return node
        if not isinstance(window.start, int) or not isinstance(window.length, int):
            return None  # an offset that is a symbol would have to be computed in front as well
        args = (node, window.dim, window.start, window.length)
        return self._new("call_function", torch.narrow, args, {})

    def _call(self, node: Node, env: dict[Node, Node | None]) -> Node | None:
        """``node`` repeated on other tensors; None where one of its sizes is only known inside the region."""
        if not all(n in env or self._is_before(n) for n in node.all_input_nodes):
            return None
        if not all(new is not None and may_fit(old, new) for old, new in env.items()):
            return None
        args: Any = map_arg(node.args, lambda n: env.get(n) or n)
        kwargs: Any = map_arg(node.kwargs, lambda n: env.get(n) or n)
        return self._new(node.op, node.target, args, kwargs)

    def _new(self, op: str, target: Any, args: Any, kwargs: Any) -> Node | None:
        values: Any = map_arg(args, fake)
        try:
            if op == "call_method":
                value = getattr(values[0], target)(*values[1:], **map_arg(kwargs, fake))
            else:
                value = target(*values, **map_arg(kwargs, fake))
        except (RuntimeError, TypeError, IndexError):
            return None
        with self._graph.inserting_before(self._before):
            node = self._graph.create_node(op, target, args, kwargs, name="base")
        node.meta["example_value"] = value
        self.made.append(node)
        return node
