"""Argument checks shared by the operators: quick when all is well, instructive when it is not."""

import torch
from torch import Tensor

from .storage import narrower


def check_floating(operator: str, name: str, tensor: Tensor) -> None:
    """Raises ValueError unless `tensor` holds real floating-point numbers."""
    if not tensor.is_floating_point():
        raise ValueError(
            f"{operator}: {name} is {_describe(tensor)}, but only real floating-point tensors have a residual that can "
            "be cached; leave integer and complex values out of the region's streams"
        )


def check_alike(operator: str, name: str, tensor: Tensor, model_name: str, model: Tensor) -> None:
    """Raises ValueError unless `tensor` has the shape, dtype and device of `model` (strides may differ)."""
    if tensor.shape == model.shape and tensor.dtype == model.dtype and tensor.device == model.device:
        return
    aspects = ("shape", "dtype", "device")
    differing = [aspect for aspect in aspects if getattr(tensor, aspect) != getattr(model, aspect)]
    raise ValueError(
        f"{operator}: {name} and {model_name} differ in {' and '.join(differing)}: {name} is {_describe(tensor)}, "
        f"{model_name} is {_describe(model)}. Nothing is broadcast or converted here: a stored tensor that no longer "
        "fits belongs to another resolution, model or device; drop it and compute the step"
    )


def check_stored(operator: str, name: str, stored: Tensor, model_name: str, model: Tensor) -> None:
    """As `check_alike`, but `stored` may also have a narrower dtype, in which snapshots are kept (storage.py)."""
    same = stored.shape == model.shape and stored.device == model.device
    if not (same and narrower(stored.dtype, model.dtype)):
        check_alike(operator, name, stored, model_name, model)


def _describe(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype}{list(tensor.shape)} on {tensor.device}"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over `dtype` are formed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
