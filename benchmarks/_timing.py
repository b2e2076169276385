"""Timing of kernels: on the device by CUDA events around a replayed graph, on the host by its clock."""

import statistics
from collections.abc import Callable
from time import perf_counter

import torch


def device_seconds(run: Callable[[], object], *, repeats: int = 7, runs: int = 20, warmup: int = 3) -> float:
    """Median over `repeats` of the device time of one `run`, in seconds.

    `runs` calls are captured in a CUDA graph and a repeat replays it between two events, so that the time the host
    needs to launch a kernel does not count, however short the kernel is.
    """
    for _ in range(warmup):  # compiles, outside the capture
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            run()
    measured = []
    for _ in range(1 + repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        measured.append(start.elapsed_time(end) / 1e3 / runs)
    return statistics.median(measured[1:])  # the first replay uploads the graph


def host_seconds(run: Callable[[], object], *, repeats: int = 5, runs: int = 200) -> float:
    """Median over `repeats` of the host time of one `run`, launches included, the device's work excluded."""
    measured = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(runs):
            run()
        measured.append((perf_counter() - start) / runs)
    torch.cuda.synchronize()
    return statistics.median(measured)
