"""`weighted_sum` in Triton: one pass, 16-byte accesses, float32 accumulation, weights as kernel arguments.

Scales are read by the kernel, so that the host waits for no number.
"""
# Triton comes without type information.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tile_triton
from .launch_triton import Launcher
from .layout import common_layout
from .tile_triton import row_offset


@triton.jit(do_not_specialize=["tiles_per_row"])  # counts: no variant per divisor
def _weighted_sum_kernel(
    OUT_ptr, BASE_ptr, SNAPSHOT_ptrs, weights, SCALE_ptrs,
    inner, tiles_per_row, sizes, out_strides, base_strides, snapshot_strides,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out = base + sum_j weights[j] * scales[j] * snapshots[j] on one tile of one row; BASE_ptr may be None.

    SNAPSHOT_ptrs, weights and snapshot_strides are tuples of one length, unrolled at compile time; the weights' values
    are run-time float32. SCALE_ptrs has that length too, or is empty where snapshots are not scaled. A row is `inner`
    consecutive elements for every operand.
    """
    tile = tl.program_id(0)
    row = tile // tiles_per_row
    start = (tile % tiles_per_row).to(tl.int64) * BLOCK
    columns = tl.arange(0, BLOCK)
    mask = columns < inner - start
    if BASE_ptr is not None:
        base = tl.load(BASE_ptr + row_offset(row, sizes, base_strides) + start + columns, mask=mask)
        total = base.to(tl.float32)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(len(SNAPSHOT_ptrs)):
        snapshot_at = SNAPSHOT_ptrs[j] + row_offset(row, sizes, snapshot_strides[j]) + start + columns
        weight = weights[j]
        if len(SCALE_ptrs) > 0:
            weight *= tl.load(SCALE_ptrs[j])
        total += tl.load(snapshot_at, mask=mask).to(tl.float32) * weight
    out_at = OUT_ptr + row_offset(row, sizes, out_strides) + start + columns
    tl.store(out_at, total.to(OUT_ptr.dtype.element_ty), mask=mask)


_launch = Launcher(_weighted_sum_kernel, BLOCK=tile_triton.BLOCK)


def weighted_sum_triton(
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    out: Tensor | None = None,
    scales: Sequence[Tensor] = (),
) -> Tensor:
    """`weighted_sum` for a non-empty float32, bfloat16 or float16 result, all on one device.

    Operands that share no rows of consecutive elements (say, one of them transposed) are first copied densely.
    """
    if out is None:
        out = torch.empty_like(snapshots[0] if base is None else base)
    layout = common_layout(out, snapshots if base is None else (*snapshots, base))
    if layout is None:
        dense_base = None if base is None else base.contiguous()
        room = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        dense_snapshots = [snapshot.contiguous() for snapshot in snapshots]
        return out.copy_(weighted_sum_triton(dense_base, dense_snapshots, weights, room, scales))
    count = len(snapshots)
    tiles_per_row = -(-layout.inner // tile_triton.BLOCK)
    _launch(
        layout, layout.rows * tiles_per_row, (out, base, *snapshots, *scales),
        out, base, tuple(snapshots), tuple(map(float, weights)), tuple(scales),
        layout.inner, tiles_per_row, layout.sizes,
        layout.strides[0], () if base is None else layout.strides[1 + count], layout.strides[1 : 1 + count],
    )  # fmt: skip
    return out
