"""Canonical form of a list of nodes: equal for repetitions of a block, whatever their names and weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from .facts import describe, fake, is_static_input


def _plain(value: Any) -> Any:
    """Arguments made hashable, types kept apart (1, 1.0 and True are different arguments)."""
    if isinstance(value, dict):
        return tuple(sorted((str(key), _plain(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *(_plain(item) for item in value))
    if isinstance(value, slice):
        return ("slice", _plain(value.start), _plain(value.stop), _plain(value.step))
    return (type(value).__name__, repr(value))


def canonical_form(nodes: Iterable[Node], *, exact: bool) -> tuple[Any, ...]:
    """Describes ``nodes`` (in graph order) by targets, argument wiring and constants.

    Nodes are numbered by place, outside values by order of first use. With ``exact`` every value is also described as
    far as compiled code may depend on it (shape, stride, dtype, device, subclass); otherwise only by dtype and rank, so
    that blocks which differ in memory layout still count as repetitions.
    """
    number: dict[Node, str] = {}
    form: list[Any] = []

    def refer(node: Node) -> str:
        if node not in number:
            number[node] = f"in{len(number)}"
            form.append((number[node], is_static_input(node), _value(node, exact)))
        return number[node]

    class Reference:
        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return self.name

    for place, node in enumerate(nodes):
        args: Any = map_arg(node.args, lambda n: Reference(refer(n)))  # type: ignore[arg-type,return-value]
        kwargs: Any = map_arg(node.kwargs, lambda n: Reference(refer(n)))  # type: ignore[arg-type,return-value]
        target = node.target if isinstance(node.target, str) else (getattr(node.target, "__module__", ""), node.target)
        form.append((node.op, target, _plain(args), _plain(dict(kwargs)), _value(node, exact)))
        number[node] = f"n{place}"
    return tuple(form)


def _value(node: Node, exact: bool) -> Any:
    value = fake(node)
    if exact:
        return describe(value)
    return (str(getattr(value, "dtype", type(value).__name__)), getattr(value, "ndim", None))
