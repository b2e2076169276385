"""Forecast of a skipped region, as one weighted sum of stored snapshots.

    out = base + sum_j weights[j] * scales[j] * snapshots[j]        float32 accumulation, rounded once to out's dtype

Plain reuse is weights = [1]. TaylorSeer (arXiv:2503.06923) predicts sum_i (t^i / i!) * D^i from finite differences D^i
of the snapshots; the differences are linear in the snapshots, so the same prediction is a weighted sum of the raw
snapshots with weights that depend on step numbers alone. Other forecasters differ in the weights only.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from .checks import accumulator, check_alike, check_floating, check_stored
from .chunks import flat_chunks
from .library import register, triton_runs
from .storage import FLOAT8, narrower, triton_stores

MOST_SNAPSHOTS: int = 6


def weighted_sum(
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    out: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """Returns base + sum_j weights[j] * scales[j] * snapshots[j], outside autograd.

    Args:
        base: any shape and strides, a real floating dtype; None: nothing is added.
        snapshots: 1 to 6 tensors of base's shape, dtype and device; strides may differ. All of them may have one of the
            dtypes of storage.py instead, where it is narrower than that of `base` or `out`.
        weights: one run-time number per snapshot. They are kernel arguments: new values never recompile anything.
        out: written in place and returned. Same shape, dtype and device, any strides without overlap. It may be `base`
            itself, but must not share memory with a snapshot. None: a new tensor with `torch.empty_like` strides.
        scales: for float8 snapshots, the float32 tensor of shape () that `store_scaled` has written with each; it is
            read on the device. Empty for other dtypes.

    Raises:
        ValueError: no or more than six snapshots, another number of weights or scales, tensors that differ in shape,
            dtype or device or are not floating, or `out` starting where a snapshot starts.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _weighted_sum(base, snapshots, weights, out, scales)
    return _weighted_sum(base, snapshots, weights, out, scales)


def weighted_sum_reference(
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    out: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """`weighted_sum` in plain PyTorch, for every device.

    Formulation for speed on the CPU: float32 accumulates in `out` itself, without a temporary or a cast; bfloat16 and
    float16 accumulate in one float32 temporary that is cut to pieces that stay in the cache (chunks.py). `add(alpha=)`
    is one fused pass, half the traffic of a product followed by a sum; `addcmul(value=)` is one with a scale besides.
    """
    first = snapshots[0] if base is None else base
    if out is None:
        out = torch.empty_like(first)
    terms = tuple(snapshots) if base is None else (base, *snapshots)
    for piece, *parts in flat_chunks((out, *terms)):
        first_part, stored = (None, parts) if base is None else (parts[0], parts[1:])
        if scales:
            _accumulate_scaled(piece, stored, weights, scales, first_part)
        else:
            _accumulate(piece, stored, weights, first_part)
    return out


def _accumulate(out: Tensor, snapshots: Sequence[Tensor], weights: Sequence[float], base: Tensor | None) -> None:
    wide = accumulator(out.dtype)
    if out.dtype == wide:
        total = out
        if base is None:
            torch.mul(snapshots[0].to(wide), weights[0], out=total)
        else:
            torch.add(base, snapshots[0], alpha=weights[0], out=total)
    else:
        total = snapshots[0].to(wide).mul_(weights[0]) if base is None else base.to(wide)
        if base is not None:
            total.add_(snapshots[0], alpha=weights[0])
    for snapshot, weight in zip(snapshots[1:], weights[1:], strict=True):
        total.add_(snapshot, alpha=weight)
    if total is not out:
        out.copy_(total)


def _accumulate_scaled(
    out: Tensor, snapshots: Sequence[Tensor], weights: Sequence[float], scales: Sequence[Tensor], base: Tensor | None
) -> None:
    wide = accumulator(out.dtype)
    total = out if out.dtype == wide else torch.empty_like(out, dtype=wide)
    if base is None:
        total.zero_()
    elif base is not total:
        total.copy_(base)
    for snapshot, weight, scale in zip(snapshots, weights, scales, strict=True):
        total.addcmul_(snapshot.to(wide), scale.to(wide), value=weight)
    if total is not out:
        out.copy_(total)


def _weighted_sum(
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    out: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    model = _check(base, snapshots, weights, out, scales)
    stored = snapshots[0]
    if triton_runs(model) and triton_stores(stored.dtype, stored.device) and stored.numel():
        return _triton()(base, snapshots, weights, out, scales)
    return weighted_sum_reference(base, snapshots, weights, out, scales)


def _check(
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    out: Tensor | None,
    scales: Sequence[Tensor],
) -> Tensor:
    """Returns the tensor whose dtype the result has."""
    count = len(snapshots)
    if not 1 <= count <= MOST_SNAPSHOTS:
        raise ValueError(
            f"weighted_sum: {count} snapshots, but it takes 1 to {MOST_SNAPSHOTS}: an order-n forecast needs n + 1 of "
            "them; before the first computed step there is nothing to forecast from"
        )
    if len(weights) != count:
        raise ValueError(f"weighted_sum: {count} snapshots but {len(weights)} weights: give one weight per snapshot")
    stored = snapshots[0]
    check_floating("weighted_sum", "snapshots[0]", stored)
    for index in range(1, count):
        check_alike("weighted_sum", f"snapshots[{index}]", snapshots[index], "snapshots[0]", stored)
    model = stored if base is None and out is None else out if base is None else base
    assert model is not None
    if model is not stored and narrower(stored.dtype, model.dtype):
        check_floating("weighted_sum", "out" if base is None else "base", model)
        check_stored("weighted_sum", "snapshots[0]", stored, "out" if base is None else "base", model)
    elif model is not stored:
        check_alike("weighted_sum", "out" if base is None else "base", model, "snapshots[0]", stored)
    if len(scales) != count * (stored.dtype == FLOAT8) or any(scale.shape != () for scale in scales):
        raise ValueError(
            f"weighted_sum: {count} snapshots are {stored.dtype} with {len(scales)} scales: float8 needs one scale of "
            "shape [] per snapshot, as store_scaled has written it, and other dtypes have none"
        )
    if model is stored and scales:
        raise ValueError("weighted_sum: float8 snapshots need a base or out, whose dtype the result has")
    if out is not None:
        check_alike("weighted_sum", "out", out, "base" if base is not None else "snapshots[0]", model)
        start = 0 if torch.compiler.is_compiling() else out.data_ptr()  # empty tensors start at 0 as well
        if start and start in [snapshot.data_ptr() for snapshot in snapshots]:
            raise ValueError("weighted_sum: out starts where a snapshot does; write into base or a new tensor")
    return model


def _weighted_sum_out(
    out: Tensor,
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    scales: Sequence[Tensor] | None = None,
) -> None:
    _weighted_sum(base, snapshots, weights, out, scales or ())


def _weighted_sum_new(
    base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float], scales: Sequence[Tensor] | None = None
) -> Tensor:
    return _weighted_sum(base, snapshots, weights, None, scales or ())


def _fake(
    base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float], scales: Sequence[Tensor] | None = None
) -> Tensor:
    return torch.empty_like(snapshots[0] if base is None else base)


def _fake_mutation(*_: object) -> None:
    return None


@cache
def _triton() -> Callable[..., Tensor]:
    from .weighted_sum_triton import weighted_sum_triton

    return weighted_sum_triton


register(
    "weighted_sum",
    "(Tensor? base, Tensor[] snapshots, float[] weights, Tensor[]? scales=None) -> Tensor",
    implementation=_weighted_sum_new,
    fake=_fake,
)
register(
    "weighted_sum_out",
    "(Tensor(a!) out, Tensor? base, Tensor[] snapshots, float[] weights, Tensor[]? scales=None) -> ()",
    implementation=_weighted_sum_out,
    fake=_fake_mutation,
)
