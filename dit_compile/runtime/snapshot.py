"""How a snapshot is stored: in the model's dtype, or in fewer bits (``snapshot_dtype``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.storage import FLOAT8, narrower
from ..kernels.store import store_residual, store_scaled
from .finite import Check, total

_DTYPES = {"bfloat16": torch.bfloat16, "float8": FLOAT8}


def stored_dtype(dtype: torch.dtype, setting: str) -> torch.dtype:
    """What a tensor of ``dtype`` is stored in: the setting's dtype where that takes fewer bits, else its own."""
    chosen = _DTYPES.get(setting, dtype)
    return chosen if narrower(chosen, dtype) else dtype


def snapshot_bytes(values: Sequence[Tensor], setting: str) -> int:
    """Bytes that a snapshot of ``values`` takes, scales included."""
    return sum(stored_bytes(value.numel(), value.dtype, setting) for value in values)


def stored_bytes(count: int, dtype: torch.dtype, setting: str) -> int:
    """The same for one tensor of ``count`` elements."""
    return count * stored_dtype(dtype, setting).itemsize + torch.float32.itemsize * _is_scaled(dtype, setting)


def _is_scaled(dtype: torch.dtype, setting: str) -> bool:
    return stored_dtype(dtype, setting) == FLOAT8 != dtype


@dataclass(frozen=True, eq=False)
class Stored:
    """One value of a snapshot: ``data``, to be multiplied by ``scale`` where there is one (kernels/storage.py).

    ``data`` is contiguous, ``scale`` a float32 tensor of shape () beside it, so that the host reads no number.
    """

    data: Tensor
    scale: Tensor | None = None

    @classmethod
    def room(cls, value: Tensor, setting: str) -> Stored:
        """Uninitialised memory for a tensor like ``value``."""
        data = torch.empty(value.shape, dtype=stored_dtype(value.dtype, setting), device=value.device)
        scaled = _is_scaled(value.dtype, setting)
        return cls(data, torch.empty((), dtype=torch.float32, device=value.device) if scaled else None)

    def write(self, value: Tensor, base: Tensor | None) -> None:
        """Stores ``value - base``."""
        if self.scale is None:
            store_residual(self.data, value, base)
        else:
            store_scaled(self.data, self.scale, value, base)

    def read(self, dtype: torch.dtype) -> Tensor:
        """The numbers in ``dtype``: a new tensor, unless they are stored so."""
        if self.scale is None:
            return self.data.to(dtype)
        return (self.data.to(torch.float32) * self.scale).to(dtype)

    def total(self) -> Tensor:
        """A number that is finite if all that is stored is (see ``finite.total``)."""
        if self.scale is None:
            return total(self.data)
        return total(self.data.to(torch.float32)) + self.scale

    def nbytes(self) -> int:
        tensors = [self.data] if self.scale is None else [self.data, self.scale]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Snapshot:
    """What the region did at one computed step: for each value that leaves it the residual, or the value itself."""

    step: int
    values: list[Stored]
    check: Check | None = None  # whether they are finite, until that is known

    def fits(self, values: Sequence[Tensor], setting: str) -> bool:
        """Whether ``values`` would be stored in these dtypes (their shapes are those of the ring)."""
        wanted = [stored_dtype(value.dtype, setting) for value in values]
        return [stored.data.dtype for stored in self.values] == wanted

    def nbytes(self) -> int:
        return sum(stored.nbytes() for stored in self.values)
