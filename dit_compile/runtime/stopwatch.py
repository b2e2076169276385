"""Time spent in a region, measured without making anybody wait."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Runs from construction to ``stop()``. On a GPU it records events, which are looked at when asked for seconds."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: float | None = None
        if self._cuda:
            self._begin = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)
            self._stream = torch.cuda.current_stream(device)
            self._begin.record(self._stream)
        else:
            self._started = time.perf_counter()

    def stop(self) -> Stopwatch:
        if self._cuda:
            self._end.record(self._stream)
        else:
            self._seconds = time.perf_counter() - self._started
        return self

    def seconds(self) -> float:
        if self._seconds is None:
            self._end.synchronize()
            self._seconds = self._begin.elapsed_time(self._end) / 1000
        return self._seconds
