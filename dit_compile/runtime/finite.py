"""Finds NaN and infinity in what would be reused, without making the host wait where it runs behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .host_read import HostRead


def total(tensor: Tensor) -> Tensor:
    """The float32 sum of all elements, which is finite if and only if all of them are (or it leaves the range of
    float32, which is as bad): shape (), on the tensor's device."""
    return tensor.detach().sum(dtype=torch.float32)


class FiniteChecks:
    """The checks of one call of a model, brought to the host in one transfer when the call is done with its regions."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._read: HostRead | None = None
        self._offset = 0

    def add(self, totals: Sequence[Tensor]) -> Check:
        """Makes one question of all these ``total``s, at least one."""
        start = len(self._sums)
        self._sums += totals
        return Check(self, start, len(self._sums))

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

    def values(self, start: int, stop: int) -> list[float]:
        """The totals at these places. Waits for the device where they are not there yet."""
        assert self._read is not None
        return self._read.values()[self._offset + start : self._offset + stop]


class Check(NamedTuple):
    """One question to ``FiniteChecks``, to be answered at a later call."""

    checks: FiniteChecks
    start: int
    stop: int

    def values(self) -> list[float]:
        return self.checks.values(self.start, self.stop)

    def passed(self) -> bool:
        return all(map(math.isfinite, self.values()))


def _gather(numbers: Sequence[Tensor]) -> Tensor:
    """One vector, on the device of the first; a model may lie on several."""
    return torch.stack([number.to(numbers[0].device) for number in numbers])
