"""What a draw returns, as numbers that a metric compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .errors import TuneError

Pixels = npt.NDArray[np.float64]


def pixels_of(result: Any) -> Pixels:
    """All pictures, or frames, of ``result`` as one flat array.

    ``result`` is what a draw may return: a picture of PIL, an array, a tensor, a list of them, or an object with
    ``images`` or ``frames`` as pipelines of diffusers return.

    Raises:
        TuneError: it is none of these.
    """
    for name in ("images", "frames"):
        if hasattr(result, name):
            return pixels_of(getattr(result, name))
    if isinstance(result, torch.Tensor):
        return result.detach().to("cpu", torch.float64).numpy().reshape(-1)
    if isinstance(result, (list, tuple)) and result:
        return np.concatenate([pixels_of(one) for one in result])
    try:
        found = np.asarray(result)
        if found.dtype.kind in "uif" and found.size:
            return found.astype(np.float64).reshape(-1)
    except (TypeError, ValueError):
        pass
    raise TuneError(
        f"draw() returned {type(result).__name__}; it must return a picture: PIL's, an array, a tensor, a list of "
        "them, or what a pipeline of diffusers returns"
    )


def data_range(references: Sequence[Pixels]) -> float:
    """The range of pixel values: 255 for integers, 2 where some are negative ([-1, 1]), else 1."""
    low, high = min(float(one.min()) for one in references), max(float(one.max()) for one in references)
    return 255.0 if high > 2.5 else 2.0 if low < 0 else 1.0


def psnr(reference: Pixels, pixels: Pixels, full_range: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / mean squared difference); infinite for equal pictures.

    Raises:
        TuneError: the pictures differ in size.
    """
    if reference.shape != pixels.shape:
        raise TuneError("draw() returned pictures of another size for the same prompt; it must repeat itself exactly")
    error = float(np.mean((reference - pixels) ** 2))
    return math.inf if error == 0 else 10 * math.log10(full_range**2 / error)
