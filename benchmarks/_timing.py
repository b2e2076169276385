"""Device timing: medians of CUDA events over repeated runs."""

import statistics
from collections.abc import Callable
from time import perf_counter

import torch


def device_seconds(run: Callable[[], object], *, repeats: int = 7, runs: int = 20, warmup: int = 3) -> float:
    """Median over `repeats` of the device time of one `run`, in seconds.

    A repeat enqueues `runs` calls between two events: the launch cost hides behind the device's work as long
    as one call takes longer on the device than on the host.
    """
    for _ in range(warmup):
        run()
    torch.cuda.synchronize()
    measured = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(runs):
            run()
        end.record()
        end.synchronize()
        measured.append(start.elapsed_time(end) / 1e3 / runs)
    return statistics.median(measured)


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
