"""What of a module's structure Dynamo's guards do not see."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_with_kwargs", "_always_called")))


def hooks_of(block: nn.Module) -> Hashable:
    """The hooks inside ``block``, by the module that has them; equal hooks are one and the same function."""
    found = []
    for name, module in block.named_modules():
        attributes = vars(module)
        for kind in _HOOKS:
            hooks = attributes.get(kind)
            if hooks:
                found.append((name, kind, tuple(hooks.values())))
        if "forward" in attributes and name:
            found.append((name, "forward", attributes["forward"]))
    return tuple(found)
