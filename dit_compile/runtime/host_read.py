"""Numbers on their way from the device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostRead:
    """A transfer of a few scalars. Starting it does not block; ``values()`` waits until they have arrived.

    On a GPU the copies go through pinned memory and end in one event, so waiting for them never drains more of the
    queue than what came before. Tensors on the host are read where they are.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values: list[float] | None = None
        device = tensors[0].device
        if device.type == "cuda":
            sizes = [tensor.numel() for tensor in tensors]
            self._buffer = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=True)
            for part, tensor in zip(self._buffer.split(sizes), tensors, strict=True):
                part.copy_(tensor.reshape(-1), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))  # of that device, which need not be the current one
        else:
            self._values = [float(x) for tensor in tensors for x in tensor.reshape(-1).tolist()]

    def ready(self) -> bool:
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        if self._values is None:
            assert self._event is not None
            self._event.synchronize()
            self._values = self._buffer.tolist()
        return self._values


def on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
