"""The inputs of a call that the runtime looks at: which tensors they are, what time it is, what changes beside the
latents.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..compat import versions
from ..kernels.probe import probe
from .rows import Rows

SAMPLE = 1 << 16  # elements compared per input


class Identity(NamedTuple):
    """Which tensors these are: equal ``key``s stand for the same objects, unwritten since (inference tensors do not
    count writes). No tensor is kept alive: a dead one is equal to none.

    The key holds the address of each tensor's weak reference. CPython makes one such reference per object, and as long
    as it is held here, the address is given to no other.
    """

    key: tuple[int, ...]
    references: tuple[weakref.ref[Tensor], ...]


NOTHING = Identity((), ())


def identify(tensors: Sequence[Tensor]) -> Identity:
    references = tuple(map(weakref.ref, tensors))
    return Identity((*map(id, references), *versions(tensors)), references)


@dataclass
class Call:
    """One call, as far as time and state depend on it.

    ``frame`` is the function of the model that is called (see GraphInfo), ``graph`` the one of its graphs that serves
    the call. ``moving`` are the latents, ``conditioning`` prompts and whatever else is known at the first step,
    ``side`` what is compared from step to step beside the latents. ``time`` is None while its value is on a device,
    ``context`` is the pipeline's name for the call, if it has one.
    """

    frame: int
    moving: Sequence[Tensor]
    timestep: Tensor | None
    conditioning: Sequence[Tensor]
    time: float | None
    context: str | None = None
    graph: int = 0
    side: Sequence[Tensor] = ()
    moving_id: Identity = field(init=False, repr=False)
    prompt_id: Identity = field(init=False, repr=False)
    timestep_id: Identity | None = field(init=False, repr=False)
    side_id: Identity = field(init=False, repr=False)
    shape: tuple[tuple[torch.Size, torch.dtype], ...] = field(init=False, repr=False)  # of the latents
    shapes: tuple[torch.Size, ...] = field(init=False, repr=False)  # of the conditioning

    def __post_init__(self) -> None:
        self.moving_id = identify(self.moving)
        self.prompt_id = identify(self.conditioning)
        self.timestep_id = None if self.timestep is None else identify((self.timestep,))
        self.side_id = identify(self.side)
        self.shape = tuple([(tensor.shape, tensor.dtype) for tensor in self.moving])
        self.shapes = tuple([tensor.shape for tensor in self.conditioning])


def mean_time(timestep: Tensor) -> Tensor:
    """One number, shape (), for the times of all samples, tokens or frames: their mean. It falls at every step of
    diffusion forcing, too, where the first frames run ahead; in float64 the mean of equal times is that time."""
    if timestep.numel() == 1:
        return timestep.reshape(())
    return timestep.mean(dtype=torch.float32 if timestep.device.type == "mps" else torch.float64)


class SideInputs:
    """What the inputs beside the latents were at the last computed step of one region: a ControlNet's samples, a
    control scale, a reference image.

    Such inputs may enter only behind the blocks that the probe sees. Most of them are the same tensor at every step,
    which costs an identity check. What changes from step to step is compared with its last computed step as the probe
    is, on a sample of its elements.
    """

    def __init__(self) -> None:
        self.known: Identity | None = None
        self._moving: set[int] = set()  # inputs that were seen to change
        self._samples: dict[int, Tensor] = {}

    def remember(self, call: Call, rows: Rows) -> None:
        """Called at a computed step. Only inputs that are known to change are sampled; ``rows`` are those of the batch
        that matter (count 0: all)."""
        if self.known is not None:
            self._moving |= self._changed(call)
        self.known = call.side_id
        self._samples = {i: probe(_sample(call.side[i], rows), None, None)[0] for i in self._moving}

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

    def _changed(self, call: Call) -> set[int]:
        count, now = len(call.side), call.side_id.key
        before = self.known.key if self.known is not None else ()
        if len(before) != len(now):
            return set(range(count))
        if now == before:
            return set()
        return {i for i in range(count) if now[i] != before[i] or now[count + i] != before[count + i]}

    def clear(self) -> None:
        self.known = None
        self._samples = {}

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
