"""Launches of the Triton kernels that do not ask again what was asked before. Imports Triton; import it lazily.

    kernel[grid](...)       binds and specialises every argument, looks the compiled kernel up, launches it   30-40 us
    compiled[grid](...)     launches it (Triton's own way to launch a kernel that `warmup` returned)           6-10 us

Which compiled kernel is right follows from the dtypes of the tensors, the alignment of their addresses, the device and
the values of all integers. The latter follow from the layout.
"""
# Triton comes without type information.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import tile_triton
from .layout import Layout

ALIGNMENT: int = 16  # bytes; Triton makes another kernel for addresses that are not multiples of this
MOST_KEPT: int = 1024  # launches per kernel that are remembered: layouts times dtypes times devices


class Launcher:
    """Launches one kernel on many layouts."""

    def __init__(self, kernel: Any, **constants: Any) -> None:
        """`constants` are the `tl.constexpr` arguments, the last ones of `kernel`, in their order."""
        self._kernel, self._constants, self._values = kernel, constants, tuple(constants.values())
        self._known: dict[tuple[object, ...], Callable[..., None]] = {}

    def __call__(self, layout: Layout, programs: int, tensors: Sequence[Tensor | None], *args: Any) -> None:
        """Launches `programs` programs with `args`, the arguments before the constants.

        `tensors` are all those whose addresses are among `args`; the first one is not None and names the device. All
        integers of `args` follow from `layout` and the number of tensors.
        """
        first = tensors[0]
        assert first is not None
        device, address = first.device, 0
        for tensor in tensors:
            if tensor is not None:
                address |= tensor.data_ptr()
        key = (layout, device.index, *[None if tensor is None else tensor.dtype for tensor in tensors])
        run = None if address % ALIGNMENT else self._known.get(key)
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current device
                self._launch(run, key, programs, args, remember=not address % ALIGNMENT)
        else:
            self._launch(run, key, programs, args, remember=not address % ALIGNMENT)

    def _launch(
        self, run: Callable[..., None] | None, key: tuple[object, ...], programs: int, args: Any, *, remember: bool
    ) -> None:
        if run is not None:
            run(*args, *self._values)
            return
        compiled = self._kernel[(programs,)](*args, **self._constants, num_warps=tile_triton.NUM_WARPS)
        if remember and _can_be_launched(compiled, len(args) + len(self._values)):
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[key] = compiled[(programs, 1, 1)]


def _can_be_launched(compiled: Any, arguments: int) -> bool:
    """Whether `compiled` is a kernel that takes all arguments, constants included (Triton 3.3 and later; its
    interpreter gives none). On HIP a kernel also depends on how large the tensors' memory is."""
    names = getattr(getattr(getattr(compiled, "src", None), "fn", None), "arg_names", ())
    return torch.version.hip is None and len(names) == arguments and hasattr(compiled, "__getitem__")
