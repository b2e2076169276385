"""What a piece of a graph does besides returning values.

    piece: y = x + 1; x.add_(y); z = dropout(y)     ->  writes {0: aten.add_}, random aten.bernoulli

AOTAutograd makes every graph functional before it is compiled and notes on the way which inputs are written into and
which outputs share memory with an input. The same run, on fake tensors, is done here for each unique piece, with every
operator looked at as it passes: no list of operator names decides what has an effect.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from ..compat import OpOverload, TorchDispatchMode, functional_metadata
from .facts import fake
from .plan import Refusal

# An operator that is tagged as random draws nothing when this argument of its schema has this value.
_DRAWS_NOTHING: dict[str, Any] = {"dropout_p": 0.0, "p": 0.0, "train": False, "training": False}


@dataclass(frozen=True)
class Effects:
    """The effects of one piece.

    ``written`` are the numbers of the inputs that it writes into and ``writers`` the operators that write; ``random``
    is an operator that draws random numbers; ``tokens`` are ordered side effects such as printing; ``groups`` are the
    process groups of its collectives. ``only_views``: it computes nothing that is read, all its outputs share memory
    with its inputs.
    """

    written: tuple[int, ...] = ()
    writers: tuple[str, ...] = ()
    random: str | None = None
    tokens: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    only_views: bool = False


def effects_of(piece: GraphModule, name: str) -> Effects:
    """Runs ``piece`` on its fake inputs and returns what it does; ``name`` is for the message.

    Raises:
        Refusal: the run failed, so the effects are unknown.
    """
    inputs = [node for node in piece.graph.nodes if node.op == "placeholder"]
    seen = _Observer()
    try:
        found = functional_metadata(piece, [fake(node) for node in inputs], seen)
        for body in _bodies(piece):
            _look_into(body, seen)
    except Exception as error:  # whatever torch raises for a graph that cannot be made functional
        text = str(error).strip().splitlines()
        raise Refusal(
            f"what {name} writes or draws could not be determined: {type(error).__name__}: {text[0] if text else ''}"
        ) from error
    outputs = next(node for node in reversed(piece.graph.nodes) if node.op == "output").args[0]
    return Effects(
        written=found.written,
        writers=tuple(seen.writers),
        random=next(iter(seen.random), None),
        tokens=found.tokens,
        groups=tuple(seen.groups),
        only_views=len(found.aliases) == len(outputs) > 0 and not found.written and not seen.random,
    )


class _Observer(TorchDispatchMode):
    """Notes operators as they are dispatched, before they are made functional."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.writers: dict[str, None] = {}
        self.random: dict[str, None] = {}
        self.groups: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload):
            given = _named(func, args, kwargs)
            if func._schema.is_mutable:
                self.writers.setdefault(str(func))
            if torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(given):
                self.random.setdefault(str(func))
            if "c10d" in func.namespace:
                self.groups.update(dict.fromkeys(_groups(given)))
        return func(*args, **kwargs)


def _named(func: OpOverload, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names in the operator's schema."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _draws_nothing(given: Mapping[str, Any]) -> bool:
    return any(name in given and given[name] == value for name, value in _DRAWS_NOTHING.items())


def _groups(given: Mapping[str, Any]) -> Iterator[str]:
    for name in ("group_name", "group", "process_group"):
        if given.get(name) is not None:
            group = given[name]
            yield group if isinstance(group, str) else str(getattr(group, "group_name", group))


def _bodies(gm: GraphModule) -> Iterator[GraphModule]:
    """Sub-graphs of higher-order operators, at any depth: they run below the observer."""
    names = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    for name in sorted(names):
        body = operator.attrgetter(name)(gm)
        if isinstance(body, GraphModule):
            yield body
            yield from _bodies(body)


def _look_into(body: GraphModule, seen: _Observer) -> None:
    """Notes the operators of a sub-graph; what it writes has been found with the operator that runs it."""
    values = [fake(node) for node in body.graph.nodes if node.op == "placeholder"]
    if all(value is not None for value in values):
        functional_metadata(body, values, seen, body=True)
    else:
        raise RuntimeError(f"{body._get_name()} has inputs of unknown shape")
