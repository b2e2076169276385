"""Finds NaN and infinity in what would be reused, without making the host wait where it runs behind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .host_read import HostRead


class FiniteChecks:
    """The checks of one call of a model, brought to the host in one transfer when the call is done with its regions.

    The sum of a tensor, taken in float32, is finite if and only if all its elements are (or the sum leaves the range
    of float32, which is as bad).
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._read: HostRead | None = None
        self._offset = 0

    def add(self, tensors: Iterable[Tensor]) -> Check:
        """One number for all of ``tensors``, at least one and floating."""
        self._sums.append(_gather([tensor.detach().sum(dtype=torch.float32) for tensor in tensors]).sum())
        return Check(self, len(self._sums) - 1)

    def send(self, others: Sequence[Tensor] = ()) -> HostRead | None:
        """Starts the transfer, of ``others`` first; does not wait. None where there is nothing to transfer."""
        numbers = [*others, *([_gather(self._sums)] if self._sums else ())]
        if numbers:
            self._read = HostRead(*numbers)
            self._offset = sum(other.numel() for other in others)
            self._sums = []
        return self._read

    def ready(self) -> bool:
        return self._read is None or self._read.ready()

    def value(self, place: int) -> float:
        """The sum at this place. Waits for the device where it is not there yet."""
        assert self._read is not None
        return self._read.values()[self._offset + place]


class Check(NamedTuple):
    """One question to ``FiniteChecks``, to be answered at a later call."""

    checks: FiniteChecks
    place: int

    def passed(self) -> bool:
        return math.isfinite(self.checks.value(self.place))


def _gather(numbers: list[Tensor]) -> Tensor:
    """One vector, on the device of the first; a model may lie on several."""
    return torch.stack([number.to(numbers[0].device) for number in numbers])
