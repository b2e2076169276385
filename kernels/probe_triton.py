"""`probe` in Triton: one pass over memory, 16-byte accesses, a repeatable reduction in two stages."""
# Triton comes without type information.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tile_triton
from .launch_triton import Launcher
from .layout import common_layout
from .tile_triton import row_offset

# At most this many partial sums: enough programs to fill any device several times, few enough to add up quickly.
# A constant, not the device's size, so that the same tensor is cut into the same partial sums everywhere.
MOST_PROGRAMS: int = 8192


@triton.jit(do_not_specialize=["tiles_per_row", "tiles"])  # counts: no variant per divisor
def _probe_kernel(
    RESIDUAL_ptr, VALUE_ptr, ENTRY_ptr, PREVIOUS_ptr, PARTIALS_ptr,
    inner, tiles_per_row, tiles, sizes, residual_strides, value_strides, entry_strides, previous_strides,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """residual = value - entry, and this program's share of [sum |previous - residual|, sum |previous|].

    Program p works on tiles p, p + P, p + 2P, ... of P programs and writes PARTIALS[0, p] and PARTIALS[1, p].
    A row is `inner` consecutive elements for every operand; ENTRY_ptr may be None.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    changed = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(program, tiles, programs):
        row = tile // tiles_per_row
        start = (tile % tiles_per_row).to(tl.int64) * BLOCK
        mask = columns < inner - start
        value = tl.load(VALUE_ptr + row_offset(row, sizes, value_strides) + start + columns, mask=mask, other=0.0)
        residual = value.to(tl.float32)
        if ENTRY_ptr is not None:
            entry = tl.load(ENTRY_ptr + row_offset(row, sizes, entry_strides) + start + columns, mask=mask, other=0.0)
            residual -= entry.to(tl.float32)
        rounded = residual.to(RESIDUAL_ptr.dtype.element_ty)
        previous_at = PREVIOUS_ptr + row_offset(row, sizes, previous_strides) + start + columns
        previous = tl.load(previous_at, mask=mask, other=0.0).to(tl.float32)
        tl.store(RESIDUAL_ptr + row_offset(row, sizes, residual_strides) + start + columns, rounded, mask=mask)
        changed += tl.abs(previous - rounded.to(tl.float32))
        total += tl.abs(previous)
    tl.store(PARTIALS_ptr + program, tl.sum(changed))
    tl.store(PARTIALS_ptr + programs + program, tl.sum(total))


_launch = Launcher(_probe_kernel, BLOCK=tile_triton.BLOCK)


def probe_triton(value: Tensor, entry: Tensor | None, previous: Tensor) -> tuple[Tensor, Tensor]:
    """`probe` for non-empty float32, bfloat16 or float16 tensors of equal shape and dtype on one device.

    Operands that share no rows of consecutive elements (say, one of them transposed) are first copied densely.
    """
    residual = torch.empty_like(value)
    operands = [value, previous] if entry is None else [value, previous, entry]
    layout = common_layout(residual, operands)
    if layout is None:
        dense = (None if entry is None else entry.contiguous(), previous.contiguous())
        copied, sums = probe_triton(value.contiguous(), *dense)
        return residual.copy_(copied), sums
    block = tile_triton.BLOCK
    tiles_per_row = -(-layout.inner // block)
    tiles = layout.rows * tiles_per_row
    programs = min(tiles, MOST_PROGRAMS)
    partials = torch.empty((2, programs), dtype=torch.float32, device=value.device)
    residual_strides, value_strides, previous_strides = layout.strides[:3]
    entry_strides = () if entry is None else layout.strides[3]
    _launch(
        layout, programs, (residual, value, entry, previous, partials),
        residual, value, entry, previous, partials,
        layout.inner, tiles_per_row, tiles, layout.sizes,
        residual_strides, value_strides, entry_strides, previous_strides,
    )  # fmt: skip
    # The second stage: torch's own sum of (2, programs) is repeatable too, and quicker to launch than a Triton kernel.
    return residual, partials.sum(1)
