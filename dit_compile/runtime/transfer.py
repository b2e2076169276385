"""How numbers reach the host: tensors go into the outbox of a call and are sent together; tickets give the values.

Sending does not block. On a GPU each device's numbers are gathered into one vector, which goes through pinned memory in
one copy and ends in one event: to wait for it never drains more of the queue than what came before. Tensors on the host
are read where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def total(tensor: Tensor) -> Tensor:
    """The float32 sum of all elements, which is finite if and only if all of them are (or it leaves the range of
    float32, which is as bad): shape (), on the tensor's device."""
    return tensor.detach().sum(dtype=torch.float32)


def on_host(tensor: Tensor) -> bool:
    return tensor.is_cpu


class Parcel:
    """Numbers that are sent together; ``values`` once they have arrived."""

    __slots__ = ("count", "events", "sent", "tensors", "values", "vectors")

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.count = 0
        self.sent = False
        self.values: list[float] | None = None
        self.vectors: list[tuple[list[int], Tensor]] = []  # places among ``values``, and the pinned copy of these
        self.events: list[torch.cuda.Event] = []

    def send(self) -> None:
        tensors, self.tensors, self.sent = self.tensors, [], True
        if all([tensor.is_cpu for tensor in tensors]):  # noqa: C419 - no generator: this runs at every call
            self.values = [x for tensor in tensors for x in (tensor.tolist() if tensor.ndim else [tensor.item()])]
            return
        of_device: dict[torch.device, tuple[list[int], list[Tensor]]] = {}
        place = 0
        for tensor in tensors:
            places, parts = of_device.setdefault(tensor.device, ([], []))
            places += range(place, place + tensor.numel())
            parts.append(tensor.to(torch.float32))
            place += tensor.numel()
        for device, (places, parts) in of_device.items():
            vector = torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0].reshape(-1)
            if device.type == "cuda":
                pinned = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
                vector = pinned.copy_(vector, non_blocking=True)
                self.events.append(event := torch.cuda.Event())
                event.record(torch.cuda.current_stream(device))  # of that device, which need not be the current one
            self.vectors.append((places, vector))

    def ready(self) -> bool:
        return self.values is not None or (self.sent and all(event.query() for event in self.events))

    def wait(self) -> list[float]:
        if self.values is None:
            if not self.sent:
                self.send()
            for event in self.events:
                event.synchronize()
        if self.values is None:
            self.values = [0.0] * self.count
            for places, vector in self.vectors:
                for place, value in zip(places, vector.tolist(), strict=True):
                    self.values[place] = value
        return self.values


class Ticket(NamedTuple):
    """What has been put into an outbox at one time."""

    parcel: Parcel
    start: int
    stop: int

    def ready(self) -> bool:
        """Whether ``values`` returns without waiting for a device."""
        return self.parcel.ready()

    def values(self) -> list[float]:
        """All elements of the tensors, in their order. Sends what has not been sent, and waits."""
        return self.parcel.wait()[self.start : self.stop]

    def ratio(self) -> float:
        """The first of two values over the second: the change that the sums of a probe stand for; NaN where there was
        nothing to compare with."""
        changed, before = self.values()
        return changed / before if before else math.nan

    def finite(self) -> bool:
        """Whether all ``values`` are."""
        return all(map(math.isfinite, self.values()))


class Outbox:
    """Collects numbers of one call of a model."""

    __slots__ = ("_parcel",)

    def __init__(self) -> None:
        self._parcel = Parcel()

    def put(self, tensors: Sequence[Tensor]) -> Ticket:
        """Tensors of shape () or (n,), on any device, to be sent with the others; they must not be written later."""
        parcel = self._parcel
        if parcel.sent:
            parcel = self._parcel = Parcel()
        start = parcel.count
        parcel.tensors += tensors
        for tensor in tensors:
            parcel.count += tensor.numel()
        return Ticket(parcel, start, parcel.count)

    def send(self) -> None:
        """Starts the transfer of what has been put so far; does not wait."""
        if self._parcel.tensors:
            self._parcel.send()
