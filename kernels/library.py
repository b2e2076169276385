"""The one `torch.library.Library` of this package, and who runs an operator.

An operator has a PyTorch reference (every device) and a Triton launcher (CUDA and HIP tensors; CPU tensors too when
TRITON_INTERPRET is set). The public host functions call the launcher directly; the operators are there to be traced.
`Library.define/impl` was chosen over `custom_op` because a call through the dispatcher costs 7 us instead of 28, and
over `triton_op` because that is decomposed into the kernel whatever the device is and then fails inside CPU pieces.

Triton is neither imported nor required here: `triton_runs` only looks whether it is installed.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("dit_cache", "DEF")

# Read once, as Triton itself does when @triton.jit runs.
INTERPRETED: bool = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
TRITON_INSTALLED: bool = importlib.util.find_spec("triton") is not None

# float64 stays with the reference: the kernels accumulate in float32.
_TRITON_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))


def triton_runs(tensor: Tensor) -> bool:
    """Whether an operator on `tensor` is the Triton kernel's business (else: the PyTorch reference's)."""
    if not (tensor.is_cuda or (INTERPRETED and tensor.is_cpu)):
        return False
    return TRITON_INSTALLED and tensor.dtype in _TRITON_DTYPES and not torch.compiler.is_compiling()


def register(name: str, schema: str, *, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Defines `torch.ops.dit_cache.<name>`.

    Args:
        name: the operator's name.
        schema: its schema without the name, for example "(Tensor x) -> Tensor"; mutated arguments must be declared.
        implementation: the host function, which itself chooses between Triton and reference, on every device.
        fake: shapes, strides and dtypes of the result for tracing; None for an operator that only mutates.
    """
    LIBRARY.define(name + schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dit_cache::{name}", fake, lib=LIBRARY)
