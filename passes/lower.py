"""Hands the unique pieces to the compiler that turns them into code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import GraphModule

from ..compat import compile_with_aot_eager, compile_with_inductor, numbers_are_operands, without_dynamo_wrapper
from ..compat.inductor_code import compiled_code
from .effects import Effects
from .facts import fake
from .piece_call import PieceCall, piece_call, put_piece

PieceCode = PieceCall | Callable[..., Any]
Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def lower(
    pieces: Mapping[str, GraphModule], effects: Mapping[str, Effects], inner: str, patches: Mapping[str, Any]
) -> dict[str, PieceCode]:
    """Compiles every unique piece once.

    ``patches`` are Inductor's settings as the user has given them. Inductor's own CUDA graphs are left off: they would
    be one for each piece.
    """
    if patches.get("triton.cudagraphs"):
        patches = {**patches, "triton.cudagraphs": False}
    if "TORCHINDUCTOR_SIZE_ASSERTS" not in os.environ:
        # Dynamo's guards check what enters the graph and the pieces fit each other by construction. Checking every
        # argument of every piece again takes 2-3 us each, more than all else that cutting the graph costs.
        patches = {"size_asserts": False, **patches}
    with numbers_are_operands():
        return {name: _compile_piece(piece, effects[name], inner, patches) for name, piece in pieces.items()}


def assemble(top: GraphModule, code: Mapping[str, PieceCode], wrap: Wrap = lambda name, code: code) -> GraphModule:
    """Puts the ``code`` of the pieces into each segment of ``top`` (in place).

    ``wrap`` makes what is called of each segment's name and code. Pieces and segments become plain callables: the way
    through ``nn.Module.__call__`` takes as long as a small kernel.
    """
    for name, segment in list(top.named_children()):
        if isinstance(segment, GraphModule):
            for piece in [piece for piece, _ in segment.named_children() if piece in code]:
                put_piece(segment, piece, code[piece])
            segment.recompile()
            put_piece(top, name, wrap(name, segment.forward))
    top.recompile()
    return top


def _compile_piece(piece: GraphModule, effects: Effects, inner: str, patches: Mapping[str, Any]) -> PieceCode:
    if effects.only_views:
        return piece.forward
    with compiled_code() as found:
        wrapped = compile_graph(piece, inner, patches)
    return piece_call(wrapped, found, effects)


def compile_graph(gm: GraphModule, inner: str, patches: Mapping[str, Any]) -> Callable[..., Any]:
    """Compiles one graph with ``inner``: ``inductor``, ``aot_eager`` or ``eager``. Takes ownership of ``gm``."""
    if inner == "eager":
        return gm.forward
    examples = [fake(node) for node in gm.graph.nodes if node.op == "placeholder"]
    if inner == "aot_eager":
        return compile_with_aot_eager(gm, examples)
    return without_dynamo_wrapper(compile_with_inductor(gm, examples, dict(patches)))
