"""Finds what a guard policy measures.

residual   the main stream behind the front blocks, less what entered them
hidden     the main stream behind the front blocks
modulated  what enters the first projection of the main stream in the first block: the stream, normed and modulated
time       the time embedding that the first block reads
input      the latents as the model takes them
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Graph, Node

from .facts import external_inputs, is_float_tensor, is_static_input, numel_hint
from .plan import Block, ClockInputs, Refusal, Region


def with_tap(region: Region, tap: str, graph: Graph, clock: ClockInputs) -> Region:
    """``region`` with the values that the guard compares for ``tap``.

    Raises:
        Refusal: the graph has no such value; names the other taps.
    """
    if tap == "residual":
        return region
    if tap == "hidden":
        return replace(region, probe_entry=None)
    block = region.blocks[0]
    if tap == "modulated":
        value = _modulated(block, _computed_from(graph, [region.probe_entry or region.probe_value]))
    elif tap == "time":
        times = _computed_from(graph, [clock.timestep] if clock.timestep is not None else [])
        latents = _computed_from(graph, clock.moving)
        reads = [n for n in external_inputs(block.nodes) if n in times - latents and is_float_tensor(n)]
        value = max(reads, key=numel_hint, default=None)
    else:
        value = max(filter(is_float_tensor, clock.moving), key=numel_hint, default=None)
    if value is None:
        raise Refusal(f"the graph has nothing to watch for the tap {tap!r}: choose a policy that watches the residual")
    return replace(region, probe_entry=None, probe_value=value)


def _modulated(block: Block, streams: set[Node]) -> Node | None:
    linear = torch.nn.functional.linear
    inputs = (node.args[0] for node in block.nodes if node.target is linear)
    return next((n for n in inputs if isinstance(n, Node) and n in streams and is_float_tensor(n)), None)


def _computed_from(graph: Graph, roots: list[Node] | tuple[Node, ...]) -> set[Node]:
    found = set(roots)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes if not is_static_input(source)):
            found.add(node)
    return found
