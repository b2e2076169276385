"""Which operands of each segment are weights, and what speaks against recording the segment as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from .effects import Effects
from .facts import is_static_input


@dataclass(frozen=True)
class SegmentOperands:
    """Of one segment: the places of its ``weights`` (parameters and buffers) and of its ``other`` operands, whether it
    is ``skippable`` (a region), and why a replay would not do what a run does (``refusal``, None: nothing)."""

    name: str
    weights: tuple[int, ...]
    others: tuple[int, ...]
    skippable: bool
    refusal: str | None


def segment_operands(top: GraphModule, effects: Mapping[str, Effects]) -> list[SegmentOperands]:
    """Of all segments of ``top``, in the order in which they run; pieces have ``effects``."""
    found = []
    for node in top.graph.nodes:
        # a segment is called, or handed to compute_or_forecast with its operands
        reference = node.args[1] if node.op == "call_function" and len(node.args) == 4 else None
        if node.op == "call_module":
            name, operands, skippable = str(node.target), node.args, False
        elif isinstance(reference, Node) and reference.op == "get_attr":
            name, operands, skippable = str(reference.target), node.args[2], True
        else:
            continue
        segment = getattr(top, name)
        if isinstance(segment, GraphModule):
            weights = tuple(i for i, one in enumerate(operands) if isinstance(one, Node) and is_static_input(one))
            others = tuple(i for i in range(len(operands)) if i not in {*weights})
            found.append(SegmentOperands(name, weights, others, skippable, _refusal(segment, effects)))
    return found


def _refusal(segment: GraphModule, effects: Mapping[str, Effects]) -> str | None:
    for piece, _ in segment.named_children():
        does = effects.get(piece, Effects())
        for there, reason in (
            (does.written, "it writes into its inputs"),
            (does.random, "it draws random numbers"),
            (does.groups, "it has collectives"),
            (does.tokens, "it has side effects, such as printing"),
        ):
            if there:
                return reason
    return None
