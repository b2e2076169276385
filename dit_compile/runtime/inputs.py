"""The inputs of a call that the runtime looks at: which tensors they are, and what time it is."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..compat import versions
from .transfer import Outbox, on_host


class Identity(NamedTuple):
    """Which tensors these are: equal ``key``s stand for the same objects, unwritten since (inference tensors do not
    count writes). No tensor is kept alive: a dead one is equal to none.

    The key holds the address of each tensor's weak reference. CPython makes one such reference per object, and as long
    as it is held here, the address is given to no other.
    """

    key: tuple[int, ...]
    references: tuple[weakref.ref[Tensor], ...]


NOTHING = Identity((), ())


def identify(*groups: Sequence[Tensor]) -> list[Identity]:
    """One identity for each group of tensors."""
    tensors = [tensor for group in groups for tensor in group]
    references = tuple(map(weakref.ref, tensors))
    ids, written = list(map(id, references)), versions(tensors)
    identities, start = [], 0
    for group in groups:
        stop = start + len(group)
        identities.append(Identity((*ids[start:stop], *written[start:stop]), references[start:stop]))
        start = stop
    return identities


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

    @classmethod
    def at(
        cls, given: Tensor | float | None, frame: int, moving: Sequence[Tensor], conditioning: Sequence[Tensor],
        context: str | None, graph: int, side: Sequence[Tensor],
    ) -> Call:  # fmt: skip
        """The call whose time, as the model got it, is ``given``; None where the model gets none."""
        if isinstance(given, Tensor):
            time = float(mean_time(given).item()) if on_host(given) else None
            return cls(frame, moving, given, conditioning, time, context, graph, side)
        return cls(frame, moving, None, conditioning, None if given is None else float(given), context, graph, side)

    def __post_init__(self) -> None:
        times = () if self.timestep is None else (self.timestep,)
        self.moving_id, self.prompt_id, self.side_id, time_id = identify(
            self.moving, self.conditioning, self.side, times
        )
        self.timestep_id = None if self.timestep is None else time_id
        self.shape = tuple([(tensor.shape, tensor.dtype) for tensor in self.moving])
        self.shapes = tuple([tensor.shape for tensor in self.conditioning])

    def read_time(self, outbox: Outbox) -> None:
        """Waits for the time where it is on a device."""
        if self.time is None and self.timestep is not None:
            self.time = outbox.put([mean_time(self.timestep)]).values()[0]


def mean_time(timestep: Tensor) -> Tensor:
    """One number, shape (), for the times of all samples, tokens or frames: their mean. It falls at every step of
    diffusion forcing, too, where the first frames run ahead; in float64 the mean of equal times is that time."""
    if timestep.numel() == 1:
        return timestep if timestep.ndim == 0 else timestep.reshape(())
    return timestep.mean(dtype=torch.float32 if timestep.device.type == "mps" else torch.float64)
