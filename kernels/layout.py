"""How the Triton kernels see a set of equally shaped tensors: rows of consecutive elements.

Dense tensors of equal strides are one row. Slices of a concatenation (`hidden[:, 512:]`) are a few long rows. Pure
Python over sizes and strides: no torch graph, no device, no Triton.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

# Rows shorter than this would leave most of a tile idle: a dense copy is cheaper.
SHORTEST_ROW: int = 256
MOST_ROW_DIMS: int = 3


class Layout(NamedTuple):
    """`inner` consecutive elements per row; row dimensions innermost first, with one tuple of strides per operand."""

    inner: int
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        rows = 1
        for size in self.sizes:
            rows *= size
        return rows


def common_layout(written: Tensor, read: Sequence[Tensor]) -> Layout | None:
    """The rows that `written` and all of `read` share, or None when only dense copies would help."""
    if written.is_contiguous() and all(tensor.is_contiguous() for tensor in read):
        return Layout(written.numel(), (), ((),) * (1 + len(read)))
    return collapse(tuple(written.shape), (written.stride(), *(tensor.stride() for tensor in read)))


@lru_cache(maxsize=1024)
def collapse(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> Layout | None:
    """Merges dimensions that are adjacent in memory for every operand; `strides[0]` is the operand that is written.

    Returns None when an operand's innermost stride is not 1, when rows are short or have more than three dimensions, or
    when elements of the written operand overlap.
    """
    dims = sorted((dim for dim in range(len(shape)) if shape[dim] != 1), key=lambda dim: strides[0][dim])
    groups: list[tuple[int, tuple[int, ...]]] = []  # (size, stride of each operand), innermost first
    for dim in dims:
        size, steps = shape[dim], tuple(operand[dim] for operand in strides)
        if groups:
            last_size, last_steps = groups[-1]
            if steps[0] < last_size * last_steps[0]:
                return None
            if all(step == last_size * last for step, last in zip(steps, last_steps, strict=True)):
                groups[-1] = (size * last_size, last_steps)
                continue
        groups.append((size, steps))
    if not groups:
        return Layout(1, (), ((),) * len(strides))
    (inner, inner_steps), rows = groups[0], groups[1:]
    if any(step != 1 for step in inner_steps) or len(rows) > MOST_ROW_DIMS or (rows and inner < SHORTEST_ROW):
        return None
    row_steps = tuple(tuple(steps[operand] for _, steps in rows) for operand in range(len(strides)))
    return Layout(inner, tuple(size for size, _ in rows), row_steps)
