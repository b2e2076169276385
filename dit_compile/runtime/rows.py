"""Some rows of a batch: which rows decide together, and how to run a region on a part of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

FEWEST = 2  # rows that compiled code takes: a graph with a symbolic batch size was traced for two and more


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a batch; of ``count`` 0, the batch as a whole, whatever its shape."""

    start: int = 0
    count: int = 0
    batch: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        return tensor.narrow(0, self.start, self.count)


WHOLE = Rows()


class RowPlaces(NamedTuple):
    """Which operands of a region have a row for each sample (``tensors``), and which are sizes that grow with the
    batch (``sizes``). ``whole``: why the region runs on all rows, where it cannot run on some."""

    tensors: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: str | None = None


def row_groups(decision: str, batch: int) -> list[Rows]:
    """The rows that decide together, for ``batch_decision``; the batch as a whole where there is nothing to divide."""
    if decision == "rows" and batch > 1:
        return [Rows(row, 1, batch) for row in range(batch)]
    if decision == "halves" and batch > 1 and batch % 2 == 0:
        return [Rows(start, batch // 2, batch) for start in (0, batch // 2)]
    return [WHOLE]


def take(operands: Sequence[Any], places: RowPlaces, groups: Sequence[Rows]) -> list[Any]:
    """The operands of a region for the rows of ``groups``, at least ``FEWEST``: a single row comes twice."""
    if places.whole is not None:
        return list(operands)
    batch = groups[0].batch
    parts = [*groups, groups[-1]] if sum(group.count for group in groups) < FEWEST else groups
    rows = sum(part.count for part in parts)
    taken = list(operands)
    for i in places.tensors:
        taken[i] = _gather(operands[i], parts, rows)
    for i in places.sizes:
        taken[i] = operands[i] // batch * rows
    return taken


def made(places: RowPlaces, groups: Sequence[Rows]) -> list[Rows]:
    """Where the rows of ``groups`` are in what a region returns for the operands that ``take`` gives."""
    if places.whole is not None:
        return list(groups)
    starts = itertools.accumulate((group.count for group in groups), initial=0)
    return [replace(group, start=start) for start, group in zip(starts, groups, strict=False)]


def _gather(tensor: Tensor, parts: Sequence[Rows], rows: int) -> Tensor:
    """A copy, because compiled code counts on strides and alignment."""
    if tensor.stride(0) == 0:  # one row, expanded
        return tensor.narrow(0, 0, 1).expand(rows, *tensor.shape[1:])
    gathered = rows_like(tensor, rows)
    return torch.cat([part.of(tensor) for part in parts], out=gathered)


def rows_like(tensor: Tensor, rows: int) -> Tensor:
    """Room for ``rows`` rows that lie in memory as those of ``tensor`` do."""
    return tensor.new_empty_strided((rows, *tensor.shape[1:]), tensor.stride())
