"""What the earlier part of a model tells the part with the blocks, where Dynamo broke the model between them.

The part with the blocks sees neither the time nor the prompt, only what was computed from them. The earlier part gets
both and passes through the backend as well, without being cached: it leaves them here. Parts of one call of a model run
one after the other in one thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Of one call: ``time`` as the model got it, the latents (``moving``) and the other tensors (``conditioning``).

    None of these tensors is kept alive.

    ``readers`` are the parts that have looked at it. A part that looks twice has been called again without the earlier
    part, whose facts then are those of another call.
    """

    time: Tensor | float
    tensors: list[weakref.ref[Tensor]]  # the latents come first
    readers: set[int] = field(default_factory=set)

    @property
    def moving(self) -> list[Tensor]:
        return _alive(self.tensors[:1])

    @property
    def conditioning(self) -> list[Tensor]:
        return _alive(self.tensors[1:])


@dataclass(frozen=True)
class Places:
    """Where the arguments of the earlier part are; ``fixed_time`` where the time is a constant of its graph."""

    timestep: int | None
    fixed_time: float | None
    tensors: tuple[int, ...]

    def inputs(self, args: Sequence[Any]) -> Inputs:
        """The latents are the first tensor, as in all models of diffusers. Where they are not, branches are told apart
        by their order alone."""
        time = args[self.timestep] if self.timestep is not None else self.fixed_time
        assert time is not None
        return Inputs(time, [weakref.ref(args[i]) for i in self.tensors])


def _alive(references: list[weakref.ref[Tensor]]) -> list[Tensor]:
    return [tensor for reference in references if (tensor := reference()) is not None]


class _Left(threading.local):
    inputs: Inputs | None = None


_left = _Left()


def leaving_inputs(run: Callable[..., Any], places: Places, *, resumed: bool) -> Callable[..., Any]:
    """``run``, a part of a model, so that later parts can ask for the ``inputs_of_call``.

    ``resumed``: it is itself what follows a break. Of several parts that get the same time the first counts, for it got
    what the model got.
    """

    def forward(*args: Any) -> Any:
        inputs, before = places.inputs(args), _left.inputs
        if not (resumed and before is not None and before.time is inputs.time):
            _left.inputs = inputs
        return run(*args)

    return forward


def inputs_of_call(reader: int) -> Inputs | None:
    """What the part before got, in the same call of the model; ``reader`` numbers the part that asks. None where no
    such part ran, or none passed through this backend."""
    inputs = _left.inputs
    if inputs is None or reader in inputs.readers:
        return None
    inputs.readers.add(reader)
    return inputs


def forget_inputs() -> None:
    """A model that is not broken is called: what other models left is of no use any more."""
    _left.inputs = None
