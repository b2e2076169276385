"""Writes the bodies of gradient checkpoints into the graph.

before:  body = self.wrap_body_0; t = tag_activation_checkpoint(body, x, w); y = t[0]
after:   y = x + linear(x, w)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..compat import is_checkpoint
from .facts import is_item_of_tuple


def inline_checkpoints(gm: GraphModule) -> GraphModule:
    """Without gradients a checkpoint is a plain call; inside it blocks, writes and random numbers would be hidden."""
    for node in [node for node in gm.graph.nodes if is_checkpoint(node)]:
        reference = node.args[0]
        body: Any = getattr(gm, str(reference.target))
        env: dict[Node, Any] = {}
        arguments = iter(node.args[1:])
        with gm.graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    env[inner] = next(arguments)
                elif inner.op == "get_attr":
                    name = f"{reference.target}_{inner.target}".replace(".", "_")
                    setattr(gm, name, getattr(body, str(inner.target)))
                    env[inner] = gm.graph.get_attr(name)
                    env[inner].meta = dict(inner.meta)
                elif inner.op == "output":
                    results = torch.fx.node.map_arg(inner.args[0], env.__getitem__)
                else:
                    env[inner] = gm.graph.node_copy(inner, env.__getitem__)
        for user in list(node.users):
            assert is_item_of_tuple(user)
            user.replace_all_uses_with(results[user.args[1]])
            gm.graph.erase_node(user)
        gm.graph.erase_node(node)
        if not reference.users:
            gm.graph.erase_node(reference)
    return gm
