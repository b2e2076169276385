"""`store_flagged` in one pass, `store_scaled` in two: one for the largest magnitude, one that writes 8 bits.

Whether all is finite is found in the same passes and stays on the device, as the scale does.
"""
# Triton comes without type information.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tile_triton
from .launch_triton import Launcher
from .layout import common_layout
from .storage import LARGEST, SMALLEST_SCALE
from .tile_triton import row_offset

# Partial maxima: every program of the second pass reads them all, so they are few, yet fill any device.
MOST_PROGRAMS: int = 1024


@triton.jit
def _residual(VALUE_ptr, BASE_ptr, row, start, columns, mask, sizes, value_strides, base_strides):
    """value - base on one tile as float32; BASE_ptr may be None."""
    value = tl.load(VALUE_ptr + row_offset(row, sizes, value_strides) + start + columns, mask=mask, other=0.0)
    residual = value.to(tl.float32)
    if BASE_ptr is not None:
        base = tl.load(BASE_ptr + row_offset(row, sizes, base_strides) + start + columns, mask=mask, other=0.0)
        residual -= base.to(tl.float32)
    return residual


@triton.jit(do_not_specialize=["tiles_per_row"])  # counts: no variant per divisor
def _store_flagged_kernel(
    SLOT_ptr, FLAG_ptr, VALUE_ptr, BASE_ptr,
    inner, tiles_per_row, sizes, slot_strides, value_strides, base_strides,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """slot = value - base on one tile of one row, FLAG = NaN if an element is not finite; BASE_ptr may be None."""
    tile = tl.program_id(0)
    row = tile // tiles_per_row
    start = (tile % tiles_per_row).to(tl.int64) * BLOCK
    columns = tl.arange(0, BLOCK)
    mask = columns < inner - start
    residual = _residual(VALUE_ptr, BASE_ptr, row, start, columns, mask, sizes, value_strides, base_strides)
    rounded = residual.to(SLOT_ptr.dtype.element_ty)
    tl.store(SLOT_ptr + row_offset(row, sizes, slot_strides) + start + columns, rounded, mask=mask)
    endless = tl.max(tl.where(tl.abs(rounded.to(tl.float32)) < float("inf"), 0, 1))  # NaN is not less, either
    if endless > 0:
        tl.store(FLAG_ptr, float("nan"))  # several programs may: they write the same


@triton.jit(do_not_specialize=["tiles_per_row", "tiles"])  # counts: no variant per divisor
def _largest_kernel(
    PARTIALS_ptr, VALUE_ptr, BASE_ptr,
    inner, tiles_per_row, tiles, sizes, value_strides, base_strides,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """PARTIALS[p] = max |value - base| over tiles p, p + P, ... of P programs; NaN counts as infinity."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = tile // tiles_per_row
        start = (tile % tiles_per_row).to(tl.int64) * BLOCK
        mask = columns < inner - start
        residual = _residual(VALUE_ptr, BASE_ptr, row, start, columns, mask, sizes, value_strides, base_strides)
        largest = tl.maximum(largest, tl.where(residual == residual, tl.abs(residual), float("inf")))
    tl.store(PARTIALS_ptr + program, tl.max(largest))


@triton.jit(do_not_specialize=["tiles_per_row", "tiles", "partials"])
def _store_scaled_kernel(
    SLOT_ptr, SCALE_ptr, PARTIALS_ptr, VALUE_ptr, BASE_ptr,
    inner, tiles_per_row, tiles, partials, sizes, slot_strides, value_strides, base_strides,
    LARGEST: tl.constexpr, SMALLEST_SCALE: tl.constexpr, PARTIALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slot = (value - base) / scale on tiles p, p + P, ...; every program finds the scale, the first one writes it."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    places = tl.arange(0, PARTIALS)
    largest = tl.max(tl.load(PARTIALS_ptr + places, mask=places < partials, other=0.0))
    scale = tl.maximum(largest / LARGEST, SMALLEST_SCALE)
    if program == 0:
        tl.store(SCALE_ptr, scale)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = tile // tiles_per_row
        start = (tile % tiles_per_row).to(tl.int64) * BLOCK
        mask = columns < inner - start
        residual = _residual(VALUE_ptr, BASE_ptr, row, start, columns, mask, sizes, value_strides, base_strides)
        slot_at = SLOT_ptr + row_offset(row, sizes, slot_strides) + start + columns
        tl.store(slot_at, (residual / scale).to(SLOT_ptr.dtype.element_ty), mask=mask)


_launch_flagged = Launcher(_store_flagged_kernel, BLOCK=tile_triton.BLOCK)
_launch_largest = Launcher(_largest_kernel, BLOCK=tile_triton.BLOCK)
_launch_store = Launcher(
    _store_scaled_kernel,
    LARGEST=LARGEST, SMALLEST_SCALE=SMALLEST_SCALE, PARTIALS=MOST_PROGRAMS, BLOCK=tile_triton.BLOCK,
)  # fmt: skip


def _through_dense(
    store: Callable[[Tensor, Tensor, Tensor, Tensor | None], None],
    slot: Tensor, number: Tensor, value: Tensor, base: Tensor | None,
) -> None:  # fmt: skip
    """``store`` of dense copies, for operands that share no rows of consecutive elements (one is transposed, say)."""
    dense = torch.empty(slot.shape, dtype=slot.dtype, device=slot.device)
    store(dense, number, value.contiguous(), None if base is None else base.contiguous())
    slot.copy_(dense)


def store_flagged_triton(slot: Tensor, flag: Tensor, value: Tensor, base: Tensor | None) -> None:
    """`store_flagged` for a non-empty float32, bfloat16 or float16 `value`."""
    layout = common_layout(slot, [value] if base is None else [value, base])
    if layout is None:
        _through_dense(store_flagged_triton, slot, flag, value, base)
        return
    tiles_per_row = -(-layout.inner // tile_triton.BLOCK)
    _launch_flagged(
        layout, layout.rows * tiles_per_row, (slot, flag, value, base),
        slot, flag, value, base,
        layout.inner, tiles_per_row, layout.sizes, *layout.strides[:2], () if base is None else layout.strides[2],
    )  # fmt: skip


def store_scaled_triton(slot: Tensor, scale: Tensor, value: Tensor, base: Tensor | None) -> None:
    """`store_scaled` for a non-empty float32, bfloat16 or float16 `value`."""
    layout = common_layout(slot, [value] if base is None else [value, base])
    if layout is None:
        _through_dense(store_scaled_triton, slot, scale, value, base)
        return
    block = tile_triton.BLOCK
    tiles_per_row = -(-layout.inner // block)
    tiles = layout.rows * tiles_per_row
    programs = min(tiles, MOST_PROGRAMS)
    partials = torch.empty(programs, dtype=torch.float32, device=value.device)
    slot_strides, value_strides = layout.strides[:2]
    base_strides = () if base is None else layout.strides[2]
    _launch_largest(
        layout, programs, (partials, value, base),
        partials, value, base,
        layout.inner, tiles_per_row, tiles, layout.sizes, value_strides, base_strides,
    )  # fmt: skip
    _launch_store(
        layout, programs, (slot, scale, partials, value, base),
        slot, scale, partials, value, base,
        layout.inner, tiles_per_row, tiles, programs, layout.sizes, slot_strides, value_strides, base_strides,
    )  # fmt: skip
