"""What a draw returns, as numbers that a metric compares."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import TuneError


def pixels_of(result: Any) -> Tensor:
    """All pictures, or frames, of ``result``: float64 on the host, shape (n,). Integers become shares of their range.

    ``result`` is what a draw may return: a picture of PIL, an array, a tensor, a list of them, or an object with
    ``images`` or ``frames`` as pipelines of diffusers return.

    Raises:
        TuneError: it is none of these.
    """
    for name in ("images", "frames"):
        if hasattr(result, name):
            return pixels_of(getattr(result, name))
    if isinstance(result, Tensor):
        pixels = result.detach().to("cpu", torch.float64).reshape(-1)
        return pixels if result.is_floating_point() else pixels / (255 if result.dtype == torch.uint8 else 65535)
    if isinstance(result, (list, tuple)) and result:
        return torch.cat([pixels_of(one) for one in result])
    if hasattr(result, "__array_interface__") or hasattr(result, "__array__"):
        numpy: Any = importlib.import_module("numpy")  # it is there where an array or a picture of PIL is
        array = numpy.asarray(result)
        if array.dtype.kind in "uif" and array.size:
            scale = 1.0 if array.dtype.kind == "f" else 255 if array.dtype.itemsize == 1 else 65535
            return torch.from_numpy(array.astype(numpy.float64) / scale).reshape(-1)
    raise TuneError(
        f"draw() returned {type(result).__name__}; it must return a picture: PIL's, an array, a tensor, a list of "
        "them, or what a pipeline of diffusers returns"
    )


def data_range(references: Sequence[Tensor]) -> float:
    """The range of pixel values: 2 where some are negative ([-1, 1]), else 1."""
    return 2.0 if min(one.min().item() for one in references) < 0 else 1.0


def psnr(reference: Tensor, pixels: Tensor, full_range: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / mean squared difference); infinite for equal pictures.

    Raises:
        TuneError: the pictures differ in size.
    """
    if reference.shape != pixels.shape:
        raise TuneError("draw() returned pictures of another size for the same prompt; it must repeat itself exactly")
    error = (reference - pixels).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(full_range**2 / error)
