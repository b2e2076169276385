"""Drops Dynamo's guards inside repeated blocks, which ``Snapshot`` makes superfluous.

A block of a text-to-image transformer has 300 guards, and each is evaluated at each step: seventeen thousand for 57
blocks, several milliseconds of the host's time. What they guard (attributes, hooks, processors, weights) does not
change between the steps of one generation; it is looked at once, at its first step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..passes.facts import module_path
from .regions import repeated_blocks

_MODEL = re.compile(r"\b(model(?:\.|\[|'\]).*)")  # also within type(...), list(...), and L['model']


def block_paths(model: nn.Module) -> frozenset[tuple[str, ...]]:
    """Where the repeated blocks of ``model`` are: ("blocks", "0"), ..."""
    blocks = set(map(id, repeated_blocks(model)))
    return frozenset(tuple(name.split(".")) for name, module in model.named_modules() if id(module) in blocks)


def outside_of(paths: frozenset[tuple[str, ...]], guards: Sequence[Any]) -> list[bool]:
    """For each guard whether it is kept: it is of no block in ``paths``. ``guards`` are Dynamo's filter entries, whose
    names are expressions of the variable that holds the model: ``model._modules['blocks']._modules['0'].eps``."""
    return [_path(paths, guard.name) is None for guard in guards]


def _path(paths: frozenset[tuple[str, ...]], expression: str) -> tuple[str, ...] | None:
    """Where in the model ``expression`` looks, if that is inside of a block."""
    found = _MODEL.search(expression)
    path = module_path(found[1])[1:] if found else ()
    return path if any(path[:length] in paths for length in {len(path) for path in paths}) else None


def name_inside(paths: frozenset[tuple[str, ...]], expression: str) -> str | None:
    """The name in the model of the parameter or buffer that Dynamo fetches by ``expression``, if it is in a block."""
    path = _path(paths, expression)
    if path is None or len(path) < 2 or path[-2] not in ("_parameters", "_buffers") or not expression.endswith("']"):
        return None
    return ".".join((*path[:-2], path[-1]))


def place_inside(paths: frozenset[tuple[str, ...]], expression: str) -> str | None:
    """The place of the value of ``expression`` in its block, as ``Description`` writes it: ``attn/to_q/scaling/a``."""
    path = _path(paths, expression)
    if path is None:
        return None
    block = next(length for length in range(1, len(path)) if path[:length] in paths)
    return "/".join(path[block:])


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    module, _, attribute = name.rpartition(".")
    found = getattr(model.get_submodule(module), attribute)
    assert isinstance(found, Tensor)
    return found
