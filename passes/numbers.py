"""Makes Python numbers that change between calls (a LoRA's weight, a guidance scale) operands of the pieces.

before:  n = w.item(); m = n * 0.5; y = x * m; z = layer_norm(x, eps=n)
after:   m = w * 0.5;  y = x * m;              z = layer_norm(x, eps=1e-6)

When a float has changed once, Dynamo passes it as a float64 tensor ``w`` of shape () and reads it with ``.item()``.
Compiled pieces take tensors, so arithmetic with the number is done with the tensor: a tensor of shape () and a Python
number of the same value give the same result and the same dtype. An operator that takes nothing but a Python number
gets the present value as a constant; Dynamo then guards on it, and another value compiles another graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..compat import free_unbacked_symbols
from .facts import fake
from .operators import NUMBER_ARITHMETIC, SCALAR_ARITHMETIC, target_name
from .plan import Refusal

NUMBER = "dit_number"  # node.meta key of inputs that are Python numbers to the caller
FIXED = "dit_fixed_numbers"  # gm.meta key: what became a constant, as (input, operator) names


def numbers_as_operands(gm: GraphModule) -> GraphModule:
    """Rewrites ``gm`` in place and returns it; its inputs that hold numbers are marked with ``NUMBER``.

    Raises:
        Refusal: an operator needs a Python number that is only known when the model runs.
    """
    twin: dict[Node, Node] = {}  # number -> tensor of shape () that holds it
    fixed: dict[tuple[str, str], None] = {}
    for node in list(gm.graph.nodes):
        if not isinstance(fake(node), torch.SymFloat) or node.op == "placeholder":
            continue
        source = node.args[0] if node.args else None
        if node.target == "item" and isinstance(source, Node):
            twin[node] = source if fake(source).ndim == 0 else _flat(gm, node, source)
            if source.op == "placeholder":
                source.meta[NUMBER] = True
        elif node.target in NUMBER_ARITHMETIC and all(source in twin for source in node.all_input_nodes):
            twin[node] = _as_tensor(gm, node, twin)
    for node, tensor in twin.items():
        for user in list(node.users):
            if user in twin or _takes_tensor(user, node, tensor):
                continue
            if free_unbacked_symbols(fake(node)):
                name = target_name(user)
                raise Refusal(f"{name} takes a Python number that is read from the tensor {tensor.name} at every call")
            if user.op != "output":
                fixed.setdefault((_origin(tensor), target_name(user)))
            user.replace_input_with(node, float(fake(node)))  # type: ignore[arg-type]  # installs Dynamo's guard
    for node in reversed(twin):
        gm.graph.erase_node(node)
    gm.meta[FIXED] = tuple(fixed)
    return gm


def _flat(gm: GraphModule, node: Node, source: Node) -> Node:
    """The one element of ``source`` as a tensor of shape ()."""
    with gm.graph.inserting_before(node):
        new = gm.graph.call_method("reshape", (source, ()))
    new.meta = {**node.meta, "example_value": fake(source).reshape(())}
    return new


def _as_tensor(gm: GraphModule, node: Node, twin: dict[Node, Node]) -> Node:
    """The arithmetic of ``node`` on tensors."""
    args: Any = map_arg(node.args, twin.__getitem__)
    values: Any = map_arg(args, fake)
    with gm.graph.inserting_before(node):
        new = gm.graph.call_function(node.target, args)  # type: ignore[arg-type]
    new.meta = {**node.meta, "example_value": node.target(*values)}  # type: ignore[operator]
    return new


def _takes_tensor(user: Node, number: Node, tensor: Node) -> bool:
    """Whether ``user`` gives the same with ``tensor`` in the place of ``number``; if so, it is rewritten."""
    if user.target is torch.scalar_tensor and user.args == (number,):
        dtype = fake(user).dtype
        user.target, user.op, user.args, user.kwargs = "to", "call_method", (tensor, dtype), {}
        return True
    if user.target not in SCALAR_ARITHMETIC or number in user.kwargs.values():
        return False
    others = [arg for arg in user.args if isinstance(arg, Node) and arg is not number]
    values = [fake(other) for other in others]
    if len(others) != 1 or not isinstance(values[0], Tensor):
        return False
    if values[0].ndim == 0 or not (values[0].is_floating_point() or values[0].is_complex()):
        return False  # a tensor of shape () takes part in the choice of the dtype, and an integer would become float64
    user.replace_input_with(number, tensor)
    return True


def _origin(tensor: Node) -> str:
    """The inputs that a number is computed from."""
    if tensor.op == "placeholder":
        return tensor.name
    return ", ".join(dict.fromkeys(map(_origin, tensor.all_input_nodes)))
