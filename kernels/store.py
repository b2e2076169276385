"""Storing a snapshot: what a region has added to a stream, in the model's dtype or in fewer bits.

    store_residual:   slot = value - base                                   rounded once to slot's dtype
    store_flagged:    the same; flag tells whether all of it is finite
    store_scaled:     slot = (value - base) / scale,  scale = amax / 448    8 bits, see storage.py

Both are read again by ``weighted_sum``, in the same pass as the forecast.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .checks import accumulator, check_alike, check_floating, check_stored
from .chunks import flat_chunks
from .library import register, triton_runs
from .storage import FLOAT8, LARGEST, SMALLEST_SCALE, triton_stores


def store_residual(slot: Tensor, value: Tensor, base: Tensor | None) -> None:
    """Writes value - base (a copy of `value` when base is None) into `slot`: one pass, rounded once, outside autograd.

    `base` has value's shape, dtype and device, and so has `slot`, which may also be bfloat16 where that is narrower;
    strides may differ, elements of `slot` must not overlap. On every device this is one `torch.sub(out=)`: nothing is
    reduced, so PyTorch's own vectorised kernel is already the single pass.

    Raises:
        ValueError: `value` is not floating, or shapes, dtypes or devices do not fit.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _store_residual(slot, value, base)
    return _store_residual(slot, value, base)


def store_flagged(slot: Tensor, flag: Tensor, value: Tensor, base: Tensor | None) -> Tensor:
    """`store_residual` that also finds out whether all that was stored is finite. Nothing is read by the host.

    Args:
        slot, value, base: as for `store_residual`.
        flag: float32, shape (), on the same device, 0. Left alone, or NaN where an element of `slot` is not finite.

    Returns:
        a float32 tensor of shape () that is finite if and only if all elements of `slot` are, or their sum leaves the
        range of float32: `flag`, where the Triton kernel that stores has written it, else the sum.

    Raises:
        ValueError: `value` is not floating, or shapes, dtypes or devices do not fit.
    """
    if triton_runs(value) and slot.dtype != FLOAT8 and value.numel():
        _check_residual("store_flagged", slot, value, base)
        _triton().store_flagged_triton(slot, flag, value, base)
        return flag
    store_residual(slot, value, base)
    return slot.detach().sum(dtype=torch.float32)


def store_scaled(slot: Tensor, scale: Tensor, value: Tensor, base: Tensor | None) -> None:
    """Writes (value - base) / s into `slot` and s = max |value - base| / 448 into `scale`, outside autograd.

    Nothing is read by the host: s is found and used on the device, which reads `value` and `base` twice. Where any
    element is infinite or NaN, s is too, and everything may become NaN: s is finite if and only if all elements are.

    Args:
        slot: float8_e4m3fn, of value's shape and device; strides may differ, elements must not overlap.
        scale: float32, shape (), on the same device.
        value: any shape and strides, a real floating dtype of two bytes or more.
        base: of value's shape, dtype and device; None: nothing is subtracted.

    Raises:
        ValueError: `value` is not floating, or shapes, dtypes or devices do not fit.
    """
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _store_scaled(slot, scale, value, base)
    return _store_scaled(slot, scale, value, base)


def store_scaled_reference(slot: Tensor, scale: Tensor, value: Tensor, base: Tensor | None) -> None:
    """`store_scaled` in plain PyTorch, for every device, with the float32 temporaries of chunks.py on the CPU."""
    if not value.numel():
        scale.fill_(SMALLEST_SCALE)
        return
    wide = accumulator(value.dtype)
    terms = (value,) if base is None else (value, base)
    largest = [_residual(parts, wide).abs_().amax() for parts in flat_chunks(terms)]
    scale.copy_(torch.stack(largest).amax().div_(LARGEST).clamp_(min=SMALLEST_SCALE))
    divisor = scale.to(wide)
    for piece, *parts in flat_chunks((slot, *terms)):
        # the rounding of a scale or quotient may lead just past 448, where PyTorch would write NaN
        piece.copy_(_residual(parts, wide).div_(divisor).clamp_(-LARGEST, LARGEST))


def _residual(terms: Sequence[Tensor], wide: torch.dtype) -> Tensor:
    """value - base in a new tensor of ``wide``."""
    value = terms[0].to(wide, copy=True)
    return value if len(terms) == 1 else value.sub_(terms[1])


def _store_residual(slot: Tensor, value: Tensor, base: Tensor | None) -> None:
    _check_residual("store_residual", slot, value, base)
    if base is None:
        slot.copy_(value)
    else:
        torch.sub(value, base, out=slot)


def _check_residual(operator: str, slot: Tensor, value: Tensor, base: Tensor | None) -> None:
    check_floating(operator, "value", value)
    if slot.dtype != FLOAT8:
        check_stored(operator, "slot", slot, "value", value)
    else:
        check_alike(operator, "slot", slot, "value", value)
    if base is not None:
        check_alike(operator, "base", base, "value", value)


def _store_scaled(slot: Tensor, scale: Tensor, value: Tensor, base: Tensor | None) -> None:
    check_floating("store_scaled", "value", value)
    check_stored("store_scaled", "slot", slot, "value", value)
    if slot.dtype != FLOAT8 or scale.shape != () or scale.dtype != torch.float32 or scale.device != slot.device:
        raise ValueError(
            f"store_scaled: slot is {slot.dtype} and scale is {scale.dtype}{list(scale.shape)} on {scale.device}, but "
            "it writes float8_e4m3fn with one float32 scale of shape [] on the same device"
        )
    if base is not None:
        check_alike("store_scaled", "base", base, "value", value)
    if triton_runs(value) and triton_stores(FLOAT8, value.device) and value.numel():
        _triton().store_scaled_triton(slot, scale, value, base)
    else:
        store_scaled_reference(slot, scale, value, base)


def _fake_mutation(*_: object) -> None:
    return None


@cache
def _triton() -> ModuleType:
    from . import store_triton

    return store_triton


register(
    "store_residual",
    "(Tensor(a!) slot, Tensor value, Tensor? base) -> ()",
    implementation=_store_residual,
    fake=_fake_mutation,
)
register(
    "store_scaled",
    "(Tensor(a!) slot, Tensor(b!) scale, Tensor value, Tensor? base) -> ()",
    implementation=_store_scaled,
    fake=_fake_mutation,
)
