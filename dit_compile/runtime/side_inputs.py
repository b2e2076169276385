"""Notices when an input of the model changes beside the latents: a ControlNet's samples, a control scale, a reference.

Such inputs may enter only behind the blocks that the probe sees. Most of them are the same tensor at every step, which
costs a comparison of integers. What changes from step to step is compared with its last computed step as the probe is,
on a sample of its elements.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels.probe import probe, residual_of
from .inputs import Call, Identity
from .rows import Rows

SAMPLE = 1 << 16  # elements compared per input


class SideInputs:
    """What the inputs beside the latents were at the last computed step of one region, with ``nbytes`` of samples."""

    def __init__(self) -> None:
        self.known: Identity | None = None
        self._moving: set[int] = set()  # inputs that were seen to change
        self._samples: dict[int, Tensor] = {}
        self.nbytes = 0

    def remember(self, call: Call, rows: Rows) -> None:
        """Called at a computed step. Only inputs that are known to change are sampled; ``rows`` are those of the batch
        that matter (count 0: all)."""
        if self.known is not None:
            self._moving |= self._changed(call)
        self.known = call.side_id
        self._samples = {i: residual_of(_sample(call.side[i], rows), None) for i in self._moving}
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in self._samples.values())

    def compare(self, call: Call, rows: Rows) -> list[Tensor] | None:
        """For each input that is not the tensor it was, the two sums of the probe (see kernels.probe).

        None when one has changed that has no sample: how much is not known.
        """
        sums = []
        for i in self._changed(call):
            before = self._samples.get(i)
            now = _sample(call.side[i], rows)
            if before is None or before.shape != now.shape or before.dtype != now.dtype:
                return None
            sums.append(probe(now, None, before)[1])
        return sums

    def has_changed(self, call: Call) -> bool:
        """Whether an input is not the tensor that it was, so that ``compare`` has something to tell."""
        return bool(call.side) and (self.known is None or self.known.key != call.side_id.key)

    def _changed(self, call: Call) -> set[int]:
        count, now = len(call.side), call.side_id.key
        before = self.known.key if self.known is not None else ()
        if len(before) != len(now):
            return set(range(count))
        if now == before:
            return set()
        return {i for i in range(count) if now[i] != before[i] or now[count + i] != before[count + i]}

    def clear(self) -> None:
        self.known, self.nbytes = None, 0
        self._samples = {}


def relative_change(changed: float, before: float) -> float:
    """``changed / before``; nothing that stays nothing has not changed."""
    if before:
        return changed / before
    return 0.0 if changed == 0 else float("inf")


def _sample(tensor: Tensor, rows: Rows) -> Tensor:
    if tensor.ndim and 0 < rows.count < rows.batch == tensor.shape[0]:
        tensor = rows.of(tensor)
    return thinned(tensor, SAMPLE)


def thinned(tensor: Tensor, count: int) -> Tensor:
    """Elements of ``tensor`` at even distances, ``count`` or up to twice as many, of small ones all: shape (n,)."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(flat.numel() // count, 1)]
