"""Matches the streams of a chain by the wiring from block to block.

Two neighbouring blocks of equal structure show which output of the first is which input of the second. That mapping,
from output place to input place, holds for every block of the same structure, so a value at the end of the chain can be
followed back without looking at shapes or at how the block computes it.
"""

from __future__ import annotations

import itertools
from typing import Any

from torch.fx import Node

from ..compat import owning_module
from .facts import external_inputs, is_static_input
from .identity import identity
from .plan import Block


def twin_by_wiring(value: Node, group: tuple[Block, ...], place: dict[Node, int], start: int) -> Node | None:
    """The value that ``value`` was, in the same stream, before position ``start``; None where the wiring is unclear."""
    gm = owning_module(value.graph)
    forms = [identity(gm, block.nodes, exact=False) for block in group]
    mapping = _output_to_input(group, forms)
    where = {node: (i, j) for i, block in enumerate(group) for j, node in enumerate(block.nodes)}
    while value in where and place[value] >= start:
        number, output = where[value]
        slot = mapping.get((forms[number], output))
        if slot is None:
            return None
        value = _activations(group[number])[slot]
    return value if place[value] < start else None


def _activations(block: Block) -> list[Node]:
    return [node for node in external_inputs(block.nodes) if not is_static_input(node)]


def _output_to_input(group: tuple[Block, ...], forms: list[Any]) -> dict[tuple[Any, int], int]:
    mapping: dict[tuple[Any, int], int] = {}
    for (i, before), (j, block) in itertools.pairwise(enumerate(group)):
        if forms[i] == forms[j]:
            outputs = {node: k for k, node in enumerate(before.nodes)}
            for slot, node in enumerate(_activations(block)):
                if node in outputs:
                    mapping.setdefault((forms[i], outputs[node]), slot)
    return mapping
