"""Do two graphs of one function do the same, apart from the sizes of their tensors?

Dynamo compiles a function again for a new size, for symbolic sizes, for inference mode, and now and then for no reason
when threads call it. Snapshots taken through one such graph serve the others if the graphs are alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator

import torch
from torch.fx import GraphModule

from ..compat import tree_leaves
from .facts import fake, size_hint
from .operators import target_name
from .plan import Exit, Region, RegionPlan

LAYOUT = frozenset({  # operators that move numbers and compute none
    "chunk", "clone", "contiguous", "expand", "expand_as", "flatten", "getitem", "movedim", "narrow", "permute",
    "repeat", "reshape", "reshape_as", "select", "split", "squeeze", "stack", "t", "transpose", "unbind", "unflatten",
    "unsqueeze", "view", "view_as",
})  # fmt: skip


def signature(gm: GraphModule, plan: RegionPlan) -> tuple[object, ...]:
    """Equal for graphs with the same operators on tensors, in the same order, and the same regions; hashable.

    The operators in the bodies of higher-order operators count, and so do fractions among their arguments (the weight
    of an adapter, which a graph may hold as a constant). Integers do not, for they may be sizes: whoever keeps a tensor
    compares those.
    The outputs of equal regions have the same rank, and their dimensions lie in memory in the same order.
    """
    return (hash(tuple(_operators(gm))), *map(_region, plan.regions))


def structure_of(gm: GraphModule) -> str:
    """A digest of the operators of ``gm``, equal in every process for equal graphs of one release of torch.

    Dynamo leaves out copies and reshapes where a size is 1, and may put independent operators in another order: the
    former do not count, nor does the order.
    """
    names = sorted(re.sub(r" at 0x[0-9a-f]+", "", name) for name in _operators(gm, LAYOUT))  # addresses of functions
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _region(region: Region) -> tuple[object, ...]:
    blocks = tuple((*block.path, block.index, block.turn) for block in region.blocks)
    return (region.front, region.back, blocks, *map(_layout, region.exits))


def _operators(gm: GraphModule, besides: Container[str] = ()) -> Iterator[str]:
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            body = getattr(gm, str(node.target), None)
            if isinstance(body, GraphModule):
                yield from _operators(body, besides)
        elif node.op not in ("placeholder", "output") and isinstance(fake(node), torch.Tensor):
            if target_name(node) in besides:
                continue
            yield str(node.target)
            yield from (repr(value) for value in tree_leaves((node.args, node.kwargs)) if isinstance(value, float))


def _layout(leaving: Exit) -> tuple[object, ...]:
    strides = [size_hint(stride) for stride in fake(leaving.node).stride()]
    order = sorted(range(len(strides)), key=strides.__getitem__)
    return (leaving.base is None, leaving.joined, *order)
