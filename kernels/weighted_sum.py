"""Forecast of a skipped region, as one weighted sum of stored snapshots, and the storing of such a snapshot.

    out = base + sum_j weights[j] * snapshots[j]        float32 accumulation, rounded once to out's dtype

Plain reuse is weights = [1]. TaylorSeer (arXiv:2503.06923) predicts sum_i (t^i / i!) * D^i from finite differences D^i
of the snapshots; the differences are linear in the snapshots, so the same prediction is a weighted sum of the raw
snapshots with weights that depend on step numbers alone. Other forecasters differ in the weights only.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from .checks import accumulator, check_alike, check_floating
from .chunks import flat_chunks
from .library import register, triton_runs

MOST_SNAPSHOTS: int = 6


def weighted_sum(
    base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """Returns base + sum_j weights[j] * snapshots[j], outside autograd.

    Args:
        base: any shape and strides, a real floating dtype; None: nothing is added.
        snapshots: 1 to 6 tensors of base's shape, dtype and device; strides may differ.
        weights: one run-time number per snapshot. They are kernel arguments: new values never recompile anything.
        out: written in place and returned. Same shape, dtype and device, any strides without overlap. It may be `base`
            itself, but must not share memory with a snapshot. None: a new tensor with `torch.empty_like` strides.

    Raises:
        ValueError: no or more than six snapshots, another number of weights, tensors that differ in shape, dtype or
            device or are not floating, or `out` starting where a snapshot starts.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _weighted_sum(base, snapshots, weights, out)
    return _weighted_sum(base, snapshots, weights, out)


def weighted_sum_reference(
    base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """`weighted_sum` in plain PyTorch, for every device.

    Formulation for speed on the CPU: float32 accumulates in `out` itself, without a temporary or a cast; bfloat16 and
    float16 accumulate in one float32 temporary that is cut to pieces that stay in the cache (chunks.py). `add(alpha=)`
    is one fused pass, half the traffic of a product followed by a sum.
    """
    first = snapshots[0] if base is None else base
    if out is None:
        out = torch.empty_like(first)
    terms = tuple(snapshots) if base is None else (base, *snapshots)
    for piece, *parts in flat_chunks((out, *terms)):
        _accumulate(piece, parts if base is None else parts[1:], weights, None if base is None else parts[0])
    return out


def store_residual(slot: Tensor, value: Tensor, base: Tensor | None) -> None:
    """Writes value - base (a copy of `value` when base is None) into `slot`: one pass, rounded once, outside autograd.

    All have the same shape, dtype and device; strides may differ, elements of `slot` must not overlap. On every device
    this is one `torch.sub(out=)`: nothing is reduced, so PyTorch's own vectorised kernel is already the single pass.

    Raises:
        ValueError: `value` is not floating, or shapes, dtypes or devices differ.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _store_residual(slot, value, base)
    return _store_residual(slot, value, base)


def _accumulate(out: Tensor, snapshots: Sequence[Tensor], weights: Sequence[float], base: Tensor | None) -> None:
    wide = accumulator(out.dtype)
    if out.dtype == wide:
        total = out
        if base is None:
            torch.mul(snapshots[0], weights[0], out=total)
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


def _weighted_sum(
    base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None
) -> Tensor:
    _check(base, snapshots, weights, out)
    if triton_runs(snapshots[0]) and snapshots[0].numel():
        return _triton()(base, snapshots, weights, out)
    return weighted_sum_reference(base, snapshots, weights, out)


def _check(base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float], out: Tensor | None) -> None:
    count = len(snapshots)
    if not 1 <= count <= MOST_SNAPSHOTS:
        raise ValueError(
            f"weighted_sum: {count} snapshots, but it takes 1 to {MOST_SNAPSHOTS}: an order-n forecast needs n + 1 of "
            "them; before the first computed step there is nothing to forecast from"
        )
    if len(weights) != count:
        raise ValueError(f"weighted_sum: {count} snapshots but {len(weights)} weights: give one weight per snapshot")
    model = snapshots[0]
    check_floating("weighted_sum", "snapshots[0]", model)
    for index in range(1, count):
        check_alike("weighted_sum", f"snapshots[{index}]", snapshots[index], "snapshots[0]", model)
    if base is not None:
        check_alike("weighted_sum", "base", base, "snapshots[0]", model)
    if out is not None:
        check_alike("weighted_sum", "out", out, "snapshots[0]", model)
        start = 0 if torch.compiler.is_compiling() else out.data_ptr()  # empty tensors start at 0 as well
        if start and any(snapshot.data_ptr() == start for snapshot in snapshots):
            raise ValueError("weighted_sum: out starts where a snapshot does; write into base or a new tensor")


def _store_residual(slot: Tensor, value: Tensor, base: Tensor | None) -> None:
    check_floating("store_residual", "value", value)
    check_alike("store_residual", "slot", slot, "value", value)
    if base is None:
        slot.copy_(value)
        return
    check_alike("store_residual", "base", base, "value", value)
    torch.sub(value, base, out=slot)


def _weighted_sum_out(out: Tensor, base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float]) -> None:
    _weighted_sum(base, snapshots, weights, out)


def _fake(base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.empty_like(snapshots[0] if base is None else base)


def _fake_mutation(*_: object) -> None:
    return None


@cache
def _triton() -> Callable[[Tensor | None, Sequence[Tensor], Sequence[float], Tensor | None], Tensor]:
    from .weighted_sum_triton import weighted_sum_triton

    return weighted_sum_triton


register(
    "weighted_sum",
    "(Tensor? base, Tensor[] snapshots, float[] weights) -> Tensor",
    implementation=_weighted_sum,
    fake=_fake,
)
register(
    "weighted_sum_out",
    "(Tensor(a!) out, Tensor? base, Tensor[] snapshots, float[] weights) -> ()",
    implementation=_weighted_sum_out,
    fake=_fake_mutation,
)
register(
    "store_residual",
    "(Tensor(a!) slot, Tensor value, Tensor? base) -> ()",
    implementation=_store_residual,
    fake=_fake_mutation,
)
