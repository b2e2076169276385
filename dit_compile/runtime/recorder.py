"""Records what code does on a device, to be replayed with one call: CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ..compat.capture import capture_precautions
from .stats import Stopwatch


class Recorded(Protocol):
    """What was recorded. ``outputs`` are the same tensors after each replay; they hold numbers after the first."""

    outputs: Sequence[Any]

    def replay(self) -> None: ...


class Timer(Protocol):
    """Runs from construction to ``stop()``; ``seconds`` of the device, once ``ready``."""

    def stop(self) -> None: ...
    def ready(self) -> bool: ...
    def seconds(self) -> float: ...


class Recorder(Protocol):
    """Records for one device, into one pool of memory.

    The memory of what is not held (intermediates) is shared by all recordings: a replay may overwrite everything in the
    pool that was not held when it was recorded.
    """

    device: torch.device

    def enter(self) -> bool:
        """A call begins: what it does comes after what earlier calls did, also on other streams. False: nothing can be
        recorded or replayed now."""

    def record(self, run: Callable[[], Sequence[Any]]) -> Recorded:
        """Records ``run``, which is called more than once and must not depend on that. Raises whatever goes wrong."""

    def timer(self) -> Timer: ...


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Sequence[Any]) -> None:
        self._graph, self.outputs = graph, outputs
        self.replay: Callable[[], None] = graph.replay


class CudaRecorder:
    """``torch.cuda.CUDAGraph`` with the precautions of Inductor's own recording (torch/_inductor/cudagraph_trees.py).

    The pool lives as long as any graph of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device)
        self._pool: Any = None
        self._alive: weakref.WeakSet[_CudaGraph] = weakref.WeakSet()
        self._last: torch.cuda.Stream | None = None

    def enter(self) -> bool:
        if torch.cuda.is_current_stream_capturing():
            return False  # somebody records all that this call does
        stream = torch.cuda.current_stream(self.device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream
        return True

    def record(self, run: Callable[[], Sequence[Any]]) -> Recorded:
        if not self._alive:
            self._pool = torch.cuda.graph_pool_handle()  # torch does not take up a pool again that has no graph left
        current, graph = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            try:
                self._side.wait_stream(current)
                with torch.cuda.stream(self._side):
                    run()  # workspaces and lazy initialisation of the libraries, for the stream of the capture
                current.wait_stream(self._side)
                capture = torch.cuda.graph(
                    graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
                )  # fmt: skip
                with capture_precautions(), capture:
                    outputs = run()
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        recorded = _CudaGraph(graph, outputs)
        self._alive.add(recorded)
        return recorded

    def timer(self) -> Timer:
        return Stopwatch(self.device)


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}  # by type of device
