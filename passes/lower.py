"""Hands the unique pieces to the compiler that turns them into code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .facts import fake

log = logging.getLogger("dit_compile.lower")

_VIEWS: set[Any] = {
    torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, "view", "transpose", "permute",
    "squeeze", "unsqueeze", "expand", "chunk", "split", torch.chunk, torch.split, "unbind", torch.unbind, "size",
}  # fmt: skip


def compiler_options(mode: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Inductor settings of ``torch.compile(mode=..., options=...)``; CUDA graphs are left off, with a warning.

    A captured graph keeps its outputs in a memory pool that the next call overwrites, while a cache lives on what the
    last call left behind.
    """
    patches = dict(torch._inductor.list_mode_options(mode)) if mode else {}
    patches.update(options)
    if patches.get("triton.cudagraphs"):
        patches["triton.cudagraphs"] = False
        if torch.cuda.is_available():
            log.warning(
                "mode=%r asks for CUDA graphs, which dit_cache does not capture: the pieces are compiled without",
                mode,
            )
    return patches


def lower(top: GraphModule, pieces: dict[str, GraphModule], inner: str, patches: dict[str, Any]) -> GraphModule:
    """Compiles every unique piece once and puts the code into each segment of ``top`` (in place).

    Pieces and segments become plain callables: the way through ``nn.Module.__call__`` takes as long as a small kernel.
    """
    if "TORCHINDUCTOR_SIZE_ASSERTS" not in os.environ:
        # Dynamo's guards check what enters the graph and the pieces fit each other by construction. Checking every
        # argument of every piece again takes 2-3 us each, more than all else that cutting the graph costs.
        patches = {"size_asserts": False, **patches}
    code = {name: compile_graph(piece, inner, patches) for name, piece in pieces.items()}
    for name, segment in list(top.named_children()):
        if isinstance(segment, GraphModule):
            for piece in [piece for piece, _ in segment.named_children() if piece in code]:
                _put(segment, piece, code[piece])
            segment.recompile()
            _put(top, name, segment.forward)
    top.recompile()
    return top


def _put(parent: GraphModule, name: str, code: Callable[..., Any]) -> None:
    """Puts ``code`` where a submodule was."""
    delattr(parent, name)
    setattr(parent, name, code)


def compile_graph(gm: GraphModule, inner: str, patches: dict[str, Any]) -> Callable[..., Any]:
    """Compiles one graph with ``inner``: ``inductor``, ``aot_eager`` or ``eager``. Takes ownership of ``gm``."""
    if inner == "eager" or _only_views(gm):
        return gm.forward
    examples = [fake(node) for node in gm.graph.nodes if node.op == "placeholder"]
    if inner == "aot_eager":
        from torch._dynamo.backends.debugging import aot_eager

        compiled: Callable[..., Any] = aot_eager(gm, examples)
        return compiled
    from torch._dynamo.eval_frame import innermost_fn
    from torch._inductor.compile_fx import compile_fx

    code: Any = compile_fx(gm, examples, config_patches=patches or None)
    # compile_fx keeps Dynamo out of its code by a wrapper; Dynamo hands us calls with itself switched off already
    return innermost_fn(code)


def _only_views(gm: GraphModule) -> bool:
    """Pieces that move no data need no code of their own."""

    def is_view(node: Node) -> bool:
        return node.target in _VIEWS or getattr(node.target, "__name__", "") == "getitem"

    return all(is_view(node) for node in gm.graph.nodes if node.op in ("call_function", "call_method"))
