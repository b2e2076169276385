"""Refuses cuts that would change results.

Dynamo's graph is not functional: blocks may write into tensors, draw random numbers, or switch autocast and grad mode.
A piece that is compiled on its own, or skipped, must contain such effects completely.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .facts import fake, storage
from .plan import Refusal

_INPLACE: set[Any] = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.imatmul, operator.setitem,
}  # fmt: skip
_RANDOM = {
    "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "multinomial",
    "normal", "poisson", "bernoulli_", "normal_", "uniform_", "exponential_", "random_", "cauchy_", "log_normal_",
    "geometric_", "rrelu", "gumbel_softmax", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d",
    "dropout2d", "dropout3d",
}  # fmt: skip


def target_name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def written(node: Node) -> list[Node]:
    """The tensors that ``node`` writes into."""
    first = [node.args[0]] if node.args and isinstance(node.args[0], Node) else []
    first = [arg for arg in first if isinstance(fake(arg), torch.Tensor)]
    if node.op not in ("call_function", "call_method"):
        return []
    if isinstance(node.target, torch._ops.OpOverload):
        arguments = node.target._schema.arguments
        return [
            value
            for spec, value in zip(arguments, node.args, strict=False)
            if spec.alias_info is not None and spec.alias_info.is_write and isinstance(value, Node)
        ]
    name = target_name(node)
    in_name = (
        name.endswith("_") and not name.endswith("__") and not hasattr(operator, name)
    )  # operator.and_ is no write
    result = first if node.target in _INPLACE or in_name else []
    if node.kwargs.get("inplace") is True:
        result = first
    out = node.kwargs.get("out")
    return [*result, out] if isinstance(out, Node) else list(result)


def is_random(node: Node) -> bool:
    """True when the value of ``node`` differs from call to call."""
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded in node.target.tags
    name = target_name(node)
    if name == "dropout":
        p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)) and bool(p != 0)
    if name == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0) != 0)
    return name in _RANDOM


def check_pure(nodes: Iterable[Node], *, why: str) -> None:
    """Refuses when one of ``nodes`` is random or writes into a tensor."""
    for node in nodes:
        if is_random(node) or written(node):
            raise Refusal(f"{node.name} ({target_name(node)}) has a side effect; {why}")


def check_cuts(gm: GraphModule, piece_of: dict[Node, str], skippable: set[str]) -> None:
    """Checks that ``piece_of`` (node -> piece) cuts through no effect and that no skippable piece has one outside.

    Raises:
        Refusal: names the operation and where it comes from.
    """
    place = {node: i for i, node in enumerate(gm.graph.nodes)}
    sharing: dict[int, list[Node]] = {}
    for node in gm.graph.nodes:
        where = storage(node)
        if where is not None:
            sharing.setdefault(where, []).append(node)
    modes: Counter[str] = Counter()
    for node in gm.graph.nodes:
        piece = piece_of.get(node)
        if piece is None:
            continue
        if is_random(node) and piece in skippable:
            raise Refusal(
                f"{target_name(node)} in {_where(node)} draws random numbers, so skipping it would change the results "
                "of everything after it. Call model.eval() (dropout is off then) or set the dropout probability to 0"
            )
        for target in written(node):
            for alias in sharing.get(storage(target) or -1, [target]):
                if place[alias] < place[node] and piece_of.get(alias) != piece:
                    outer = alias.op in ("placeholder", "get_attr")
                    if not outer or piece in skippable:
                        raise Refusal(
                            f"{target_name(node)} in {_where(node)} writes into {alias.name}, which was made outside "
                            "that block. Write `x = x + y` instead of `x += y` (out of place) across blocks"
                        )
        _check_modes(node, piece, piece_of, modes)
    odd = [piece for piece, count in modes.items() if count % 2]
    if odd:
        raise Refusal(f"a no_grad section begins in {odd[0]} and ends in another block")


def _check_modes(node: Node, piece: str, piece_of: dict[Node, str], modes: Counter[str]) -> None:
    name = target_name(node)
    if name == "_set_grad_enabled":
        modes[piece] += 1
    if name in ("_exit_autocast", "wait_tensor", "wait"):
        for opener in node.all_input_nodes:
            if opener.op == "call_function" and piece_of.get(opener) != piece:
                kind = "an autocast section" if name == "_exit_autocast" else "a collective"
                raise Refusal(f"{kind} begins in {_where(opener)} and ends in {_where(node)}")


def _where(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values()))), "the forward method of the model")
