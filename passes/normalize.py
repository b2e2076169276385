"""Small rewrites that keep a graph's meaning and leave only tensors and SymInts to cross between pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..compat import is_usage_log
from .facts import fake, is_item_of_tuple, size_expr
from .inline_bodies import inline_bodies
from .numbers import numbers_as_operands
from .out_of_place import out_of_place


def normalize(gm: GraphModule) -> GraphModule:
    """Runs all rewrites; ``gm`` is changed in place and returned."""
    return share_sizes(gather_items(out_of_place(numbers_as_operands(inline_bodies(drop_telemetry(gm))))))


def drop_telemetry(gm: GraphModule) -> GraphModule:
    """Removes the usage logging that slicing a ``ModuleList`` leaves behind; it would count as glue between blocks."""
    for node in list(gm.graph.nodes):
        if is_usage_log(node):
            gm.graph.erase_node(node)
    return gm


def gather_items(gm: GraphModule) -> GraphModule:
    """Moves every ``getitem`` on a tuple right behind the node that made the tuple.

    before:  t = chunk(x); ...block boundary...; a = t[0]
    after:   t = chunk(x); a = t[0]; ...block boundary...

    Tuples cannot cross the boundary between two compiled pieces, their items can. An item belongs to the module that
    made the tuple.
    """
    for node in list(gm.graph.nodes):
        if is_item_of_tuple(node) and node.args[0].op != "placeholder":
            source = node.args[0]
            anchor = source
            while anchor.next is not node and is_item_of_tuple(anchor.next) and anchor.next.args[0] is source:
                anchor = anchor.next
            if anchor.next is not node:
                anchor.append(node)
            if "nn_module_stack" in source.meta:
                node.meta["nn_module_stack"] = source.meta["nn_module_stack"]
    return gm


def share_sizes(gm: GraphModule) -> GraphModule:
    """Lets every symbolic size be read from the first node that holds it.

    before:  n = x.size(1) ...region...; m = y.size(1) (same symbol); head(m)
    after:   n = x.size(1) ...region...; head(n)

    Without this a head that asks a tensor of the region for its length would depend on the region.
    """
    first: dict[Any, Node] = {}
    for node in list(gm.graph.nodes):
        value = fake(node)
        if not isinstance(value, torch.SymInt):
            continue
        known = first.setdefault(size_expr(value), node)
        if known is not node and node.op != "placeholder":
            node.replace_all_uses_with(known)
            gm.graph.erase_node(node)
    return gm
