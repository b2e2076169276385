"""The processes in which Inductor compiles Triton kernels, started before they are needed."""

from __future__ import annotations

import multiprocessing
import os

import torch

_of_process = os.getpid()


def start_workers() -> bool:
    """Starts Inductor's worker processes if this process uses a GPU already. Returns whether it did.

    They take seconds to start. The backend named "inductor" starts them when it is looked up; other backends get them
    at their first kernel, after Dynamo's trace (``torch._inductor.async_compile.maybe_warm_pool``, since 2.5; without
    it they start then). It does nothing with ``TORCHINDUCTOR_COMPILE_THREADS=1``. Not in processes that were forked or
    must not have children, such as those of a data loader.
    """
    if not torch.cuda.is_initialized() or os.getpid() != _of_process or multiprocessing.current_process().daemon:
        return False
    import torch._inductor.async_compile as async_compile

    start = getattr(async_compile, "maybe_warm_pool", None)
    if start is None:
        return False
    start()
    return True
