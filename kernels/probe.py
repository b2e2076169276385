"""The guard's measurement: how much did the first blocks' effect change since an earlier step?

    residual = value - entry                                      rounded once to value's dtype
    sums     = [ sum |previous - residual|,  sum |previous| ]     float32
    diff     = sums[0] / sums[1]                                  left to the caller, who reads both in one transfer

The relative L1 distance of the first blocks' residual is the similarity measure of First Block Cache (ParaAttention,
github.com/chengzeyi/ParaAttention) and of cache-dit's DBCache (github.com/vipshop/cache-dit). `residual` is what a
later step passes as `previous`; the rounded residual enters the difference, so that a repeated step measures exactly 0.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .checks import accumulator, check_alike, check_floating
from .chunks import CHUNK, flat_chunks
from .library import register, triton_runs


def probe(value: Tensor, entry: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the residual and the two sums of the relative L1 distance (formula above), outside autograd.

    Args:
        value: the probed stream after the first blocks: any shape and strides, a real floating dtype.
        entry: the same stream before them; None: the residual is a copy of `value`.
        previous: the residual of an earlier step; None: nothing to compare with, the sums are [0, 0].

    Returns:
        residual: a new tensor like `value` (`torch.empty_like` strides), never an alias.
        sums: float32, shape (2,), on value's device. NaN and inf propagate. Repeatable: no atomics.

    Raises:
        ValueError: `value` is not floating, or `entry` or `previous` differ from it in shape, dtype or device.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _probe(value, entry, previous)
    return _probe(value, entry, previous)


def probe_reference(value: Tensor, entry: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    """`probe` in plain PyTorch, for every device.

    Formulation for speed on the CPU: `.to(float32)` is free for float32 tensors, and float32 temporaries are cut to
    pieces that stay in the cache (chunks.py). `vector_norm(ord=1)` would save a temporary but keeps one running
    float32: off by 2 % at 30 million elements where `sum` (pairwise) is off by 1e-7, and slower besides.
    """
    residual = _residual(value, entry)
    if previous is None:
        return residual, value.new_zeros((2,), dtype=torch.float32)
    wide = accumulator(value.dtype)
    if value.dtype == wide and value.numel() <= CHUNK:  # what follows, without a look at pieces and dtypes
        return residual, torch.stack(((previous - residual).abs_().sum(), previous.abs().sum())).float()
    parts: list[Tensor] = []
    for old, new in flat_chunks((previous, residual)):
        old = old.to(wide)
        parts += ((old - new.to(wide)).abs_().sum(), old.abs().sum())
    sums = torch.stack(parts)
    if len(parts) > 2:
        sums = sums.view(-1, 2).sum(0)
    return residual, sums.float()


def residual_of(value: Tensor, entry: Tensor | None) -> Tensor:
    """The first result of `probe`, where there is nothing to compare with."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            return residual_of(value, entry)
    check_floating("residual_of", "value", value)
    if entry is not None:
        check_alike("residual_of", "entry", entry, "value", value)
    return _residual(value, entry)


def _residual(value: Tensor, entry: Tensor | None) -> Tensor:
    residual = torch.empty_like(value)
    return residual.copy_(value) if entry is None else torch.sub(value, entry, out=residual)


def _probe(value: Tensor, entry: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    check_floating("probe", "value", value)
    if entry is not None:
        check_alike("probe", "entry", entry, "value", value)
    if previous is not None:
        check_alike("probe", "previous", previous, "value", value)
        if triton_runs(value) and value.numel():
            return _triton()(value, entry, previous)
    # Without a previous residual there is nothing to reduce: one torch.sub is already one pass.
    return probe_reference(value, entry, previous)


def _fake(value: Tensor, entry: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(value), value.new_empty((2,), dtype=torch.float32)


@cache
def _triton() -> Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]:
    from .probe_triton import probe_triton

    return probe_triton


register(
    "probe",
    "(Tensor value, Tensor? entry, Tensor? previous) -> (Tensor, Tensor)",
    implementation=_probe,
    fake=_fake,
)
