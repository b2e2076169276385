"""What Inductor does around the capture of a CUDA graph, and its comparison of addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def capture_precautions() -> Iterator[None]:
    """Keeps a capture from changing the state of random generators (``torch._dynamo.utils.preserve_rng_state``, since
    2.0) and cuBLAS workspaces from staying in the pool (``cudagraph_trees.clear_cublas_manager``, since 2.1).

    Without the first name the generators of the capture's device may be ahead afterwards; without the second the pool
    holds a workspace of some megabytes.
    """
    from torch._dynamo import utils
    from torch._inductor import cudagraph_trees

    found = (getattr(utils, "preserve_rng_state", None), getattr(cudagraph_trees, "clear_cublas_manager", None))
    with ExitStack() as stack:
        for manager in found:
            if manager is not None:
                stack.enter_context(manager())
        yield


def address_check(tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], bool]:
    """A function that says whether each of the tensors that it gets is where that one of ``tensors`` is now.

    ``torch._C._tensors_data_ptrs_at_indices_equal`` (since 2.2, CUDA builds only) compares in C++; without it Python
    does, which takes 0.06 us a tensor.
    """
    addresses = [tensor.data_ptr() for tensor in tensors]
    compare = getattr(torch._C, "_tensors_data_ptrs_at_indices_equal", None)
    if compare is None:
        return lambda others: [tensor.data_ptr() for tensor in others] == addresses
    places = list(range(len(addresses)))
    return lambda others: bool(compare(list(others), addresses, places))
