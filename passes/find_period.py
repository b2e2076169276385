"""Finds repeated blocks by structure alone.

Used where Dynamo left no module names: functional loops, frames resumed after a graph break, blocks kept in closures.
The graph is read as a string of operations; the longest stretch in which operation ``i`` equals operation ``i + p``
gives the period ``p``, and the phase with the fewest values crossing from one repetition to the next gives the cuts.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .facts import external_inputs, positions
from .identity import identity
from .plan import Block

_MIN_REPEATS = 3
_MIN_PERIOD = 4


def find_period(gm: GraphModule) -> tuple[Block, ...]:
    """The longest chain of structurally equal blocks in ``gm``, or an empty tuple."""
    nodes = [node for node in gm.graph.nodes if node.op in ("call_function", "call_method", "call_module")]
    code: dict[Any, int] = {}
    word = torch.tensor([code.setdefault(_letter(node), len(code)) for node in nodes], device="cpu")
    edge = torch.zeros(1, dtype=torch.int8, device="cpu")
    best = (0, 0, 0)  # nodes covered, -period, start
    for period in range(_MIN_PERIOD, len(word) // _MIN_REPEATS + 1):
        equal = torch.cat([edge, (word[:-period] == word[period:]).to(torch.int8), edge])
        edges = torch.diff(equal).nonzero().flatten().tolist()
        for start, stop in zip(
            edges[::2], edges[1::2], strict=True
        ):  # stretches in which operation i equals i + period
            if stop - start >= (_MIN_REPEATS - 1) * period:
                covered = (stop - start + period) // period * period
                best = max(best, (covered, -period, start))
    covered, period, start = best[0], -best[1], best[2]
    if not covered:
        return ()
    return _cut_at_narrowest(gm, nodes, start, covered, period)


def _letter(node: Node) -> Any:
    constants = tuple(repr(arg) for arg in node.args if isinstance(arg, (int, float, str, bool)))
    return (node.op, str(node.target), len(node.all_input_nodes), constants)


def _cut_at_narrowest(gm: GraphModule, nodes: list[Node], start: int, covered: int, period: int) -> tuple[Block, ...]:
    place = positions(gm.graph)
    length = {node: i for i, node in enumerate(nodes)}
    reach = [max((length.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes]

    def crossing(cut: int) -> int:
        """Values made inside the repetitions so far that are read behind ``cut``."""
        return sum(reach[i] >= cut for i in range(max(start, cut - period), cut))

    end = start + covered
    phase = min(range(period), key=lambda p: (crossing(start + period + p), p))
    cuts = list(range(start + phase, end + 1, period))
    pieces = [nodes[a:b] for a, b in itertools.pairwise(cuts)]
    while pieces and not _alike(gm, pieces[0], pieces[1] if len(pieces) > 1 else []):
        pieces.pop(0)
    while len(pieces) > 1 and not _alike(gm, pieces[-1], pieces[-2]):
        pieces.pop()
    blocks = tuple(Block("structure", i, "repeated operations", tuple(piece)) for i, piece in enumerate(pieces))
    linked = all(_reads(b, a) for a, b in itertools.pairwise(blocks))
    ordered = all(place[a.nodes[-1]] < place[b.nodes[0]] for a, b in itertools.pairwise(blocks))
    return blocks if linked and ordered and len(blocks) >= _MIN_REPEATS else ()


def _alike(gm: GraphModule, left: list[Node], right: list[Node]) -> bool:
    return identity(gm, left, exact=False) == identity(gm, right, exact=False)


def _reads(block: Block, before: Block) -> bool:
    produced = set(before.nodes)
    return any(node in produced for node in external_inputs(block.nodes))
