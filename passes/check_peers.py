"""Refuses graphs in which another step cache is at work: two caches would reuse each other's approximations."""

from __future__ import annotations

import re

from torch.fx import GraphModule

from .plan import Refusal

_PEERS = {
    "diffusers": (re.compile(r"diffusers/hooks/\w*(cache|broadcast)\w*\.py"), "transformer.disable_cache()"),
    "cache-dit": (re.compile(r"cache_dit/caching/"), "cache_dit.disable_cache(pipe)"),
}


def check_peers(gm: GraphModule) -> None:
    """Looks through the stack traces that Dynamo left on the nodes.

    Raises:
        Refusal: names the other cache and how to turn it off.
    """
    for node in gm.graph.nodes:
        trace = node.meta.get("stack_trace") or ""
        for name, (pattern, off) in _PEERS.items():
            if pattern.search(trace):
                raise Refusal(f"the step cache of {name} is enabled on this model as well. Turn it off first: {off}")
