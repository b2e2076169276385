"""What the Triton kernels share: the size of a tile and the address of a row. Imports Triton; import it lazily."""
# Triton comes without type information.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"

import triton
import triton.language as tl

# 16 elements per thread: two 16-byte accesses per operand for 2-byte dtypes, four for float32.
BLOCK: int = 2048
NUM_WARPS: int = 4


@triton.jit
def row_offset(row, sizes, strides):
    """Offset in elements of row number `row`, as int64; `sizes` and `strides` are tuples, innermost dimension first."""
    offset = row.to(tl.int64) * 0
    for dim in tl.static_range(len(sizes)):
        offset += (row % sizes[dim]).to(tl.int64) * strides[dim]
        row = row // sizes[dim]
    return offset
