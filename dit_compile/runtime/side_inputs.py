"""Notices when an input of the model changes beside the latents: a ControlNet's samples, a control scale, a reference.

Such inputs may enter only behind the blocks that the probe sees. Most of them are the same tensor at every step, which
costs an identity check. What changes from step to step is compared with its last computed step as the probe is, on a
sample of its elements.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..kernels.probe import probe
from .identity import Fingerprint, fingerprint
from .rows import Rows

SAMPLE = 1 << 16  # elements compared per input


class SideInputs:
    """What the inputs were at the last computed step of one region."""

    def __init__(self) -> None:
        self._ids: Fingerprint = ()
        self._moving: set[int] = set()  # inputs that were seen to change
        self._samples: dict[int, Tensor] = {}

    def remember(self, inputs: Sequence[Tensor], rows: Rows) -> None:
        """Called at a computed step. Only inputs that are known to change are sampled; ``rows`` are those of the batch
        that matter (count 0: all)."""
        self._moving |= self._changed(inputs) if self._ids else set()
        self._ids = fingerprint(list(inputs))
        self._samples = {i: probe(_sample(inputs[i], rows), None, None)[0] for i in self._moving}

    def compare(self, inputs: Sequence[Tensor], rows: Rows) -> list[Tensor] | None:
        """For each input that is not the tensor it was, the two sums of the probe (see kernels.probe).

        None when one has changed that has no sample: how much is not known.
        """
        sums = []
        for i in self._changed(inputs):
            before = self._samples.get(i)
            now = _sample(inputs[i], rows)
            if before is None or before.shape != now.shape or before.dtype != now.dtype:
                return None
            sums.append(probe(now, None, before)[1])
        return sums

    def _changed(self, inputs: Sequence[Tensor]) -> set[int]:
        if len(inputs) != len(self._ids):
            return set(range(len(inputs)))
        return {i for i, (known, tensor) in enumerate(zip(self._ids, inputs, strict=True)) if not known.is_same(tensor)}

    def clear(self) -> None:
        self._ids = ()
        self._samples.clear()

    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._samples.values())


def relative_change(changed: float, before: float) -> float:
    """``changed / before``; nothing that stays nothing has not changed."""
    if before:
        return changed / before
    return 0.0 if changed == 0 else float("inf")


def _sample(tensor: Tensor, rows: Rows) -> Tensor:
    if tensor.ndim and 0 < rows.count < rows.batch == tensor.shape[0]:
        tensor = rows.of(tensor)
    flat = tensor.detach().reshape(-1)
    return flat[:: max(flat.numel() // SAMPLE, 1)]
