"""What the passes know about operators by name: which ones only move data, add, slice, or write in place.

Everything here makes a pass find more (a residual path, a slice, an ordinary form). Nothing here decides whether a
piece may be skipped: that is read from what the piece does (``effects``).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
# the result is the first operand, changed by the others
FIRST_OPERAND: set[Any] = {
    operator.sub, operator.isub, torch.sub, torch.addcmul, "sub", "sub_", "addcmul", "addcmul_", torch.slice_scatter,
}  # fmt: skip
SPLITS: set[Any] = {torch.split, torch.chunk, "split", "chunk", "split_with_sizes"}
CONCATENATIONS: set[Any] = {torch.cat, torch.concat, torch.concatenate}
# every element stays where it is and what it is, but for its dtype or bounds
ELEMENTWISE: set[Any] = {
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clamp", "clip", "clone", "detach",
    torch.clamp, torch.clip, torch.clone, torch.nn.functional.dropout,
}  # fmt: skip
MOVES: set[Any] = ELEMENTWISE | SPLITS | {
    torch.reshape, torch.flatten, torch.unflatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze,
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "expand", "expand_as",
    "view_as", "reshape_as", "movedim", "swapaxes", "narrow",
}  # fmt: skip
SLICES: set[Any] = SPLITS | {operator.getitem, torch.narrow, "narrow"}
WAVES: set[Any] = {torch.sin, torch.cos, "sin", "cos"}

# the ordinary forms of in-place operations
FUNCTIONAL: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip
FUNCTIONAL_METHODS = {
    f"{name}_": name for name in ("add", "sub", "mul", "div", "addcmul", "clamp", "neg", "relu", "sigmoid")
}

# with a tensor and a Python number they give what they give with that number as a tensor of shape ()
SCALAR_ARITHMETIC: set[Any] = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.multiply, torch.divide,
    torch.subtract, "add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_",
}  # fmt: skip
# the same among Python numbers; IEEE double on both sides
NUMBER_ARITHMETIC: set[Any] = {operator.add, operator.sub, operator.mul, operator.truediv, operator.neg}

# operators that run over one dimension, for the choice of rows of a batch
OVER_A_DIM = {
    "softmax", "log_softmax", "flip", "roll", "cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "topk",
    "kthvalue",
}  # fmt: skip


def target_name(node: Node) -> str:
    """The operator's name as a user would write it."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
