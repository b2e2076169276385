"""Is this the very tensor that an earlier call was given?"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ..compat import version


class TensorId:
    """Remembers a tensor object and its version without keeping it alive."""

    __slots__ = ("_ref", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._ref = weakref.ref(tensor)
        self._version = version(tensor)

    def is_same(self, tensor: Tensor) -> bool:
        """True for the same object, unwritten since (inference tensors do not count writes)."""
        return self._ref() is tensor and self._version == version(tensor)


Fingerprint = tuple[TensorId, ...]


def fingerprint(tensors: list[Tensor]) -> Fingerprint:
    return tuple(TensorId(tensor) for tensor in tensors)


def matches(known: Fingerprint, tensors: list[Tensor]) -> bool:
    return len(known) == len(tensors) and all(i.is_same(t) for i, t in zip(known, tensors, strict=True))


def layout(tensor: Tensor) -> tuple[object, ...]:
    """What must stay the same for stored state to fit: shape, dtype, device, inference mode."""
    return (tensor.shape, tensor.dtype, tensor.device, torch.is_inference_mode_enabled())
