"""Takes weights off the argument list of a graph, where somebody else knows where they are.

before:  graph(L['model'].blocks.0.up.weight, ..., L['model'].blocks.56.down.bias, x, t)     1,162 arguments
after:   graph(x, t)

TorchDynamo writes code that fetches every input at every call, and does so after the backend has returned: it reads
from the graph that it gave to the backend which inputs there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch.fx import GraphModule, Node

from ..compat import source_name
from .facts import is_static_input


class Bound(NamedTuple):
    """Inputs that a call need not pass: their ``places`` among ``total`` inputs, and their ``names`` in the model."""

    places: tuple[int, ...]
    names: tuple[str, ...]
    total: int


def find_weights(gm: GraphModule, name_of: Callable[[str], str | None]) -> Bound:
    """The weights among the inputs of ``gm``; ``name_of`` gives the name in the model of what Dynamo calls so."""
    placeholders = list(gm.graph.find_nodes(op="placeholder"))
    names = [name_of(source_name(node)) if is_static_input(node) else None for node in placeholders]
    found = [(place, name) for place, name in enumerate(names) if name is not None]
    return Bound(tuple(place for place, _ in found), tuple(name for _, name in found), len(placeholders))


def drop_inputs(gm: GraphModule, bound: Bound) -> None:
    """Leaves nothing in ``gm`` but the inputs that are still to be passed."""
    placeholders = list(gm.graph.find_nodes(op="placeholder"))
    dropped: set[Node] = {placeholders[place] for place in bound.places}
    for node in reversed(list(gm.graph.nodes)):
        if node.op != "placeholder" or node in dropped:
            gm.graph.erase_node(node)
    gm.graph.output(())
