"""One segment of a compiled graph, recorded as a CUDA graph: where its operands must be, and how they get there."""

from __future__ import annotations

import functools
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compat import versions
from ..compat.capture import address_check
from .recorder import Recorder

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class SegmentPlace(NamedTuple):
    """What is known of a segment before it runs: the places of its ``weights`` and of its ``others`` among its
    operands, whether a call may leave it out (``skippable``), and why it must not be recorded (``refusal``)."""

    number: int
    name: str
    weights: tuple[int, ...]
    others: tuple[int, ...]
    skippable: bool
    refusal: str | None


class Unrecordable(Exception):
    """An operand that a recorded graph cannot read."""


class Output(NamedTuple):
    """A tensor that a recorded segment returns: the same one after each replay.

    ``writable``: nothing else is in its memory. ``steady``: every call replays the segment.
    """

    tensor: Tensor
    writable: bool
    steady: bool


class _Input:
    """An operand that is a tensor, and the ``static`` tensor that the recorded graph reads.

    What is another tensor than at the last call is copied, unless the operand is the static tensor itself. ``fixed``:
    it must be. ``volatile``: replays write into the operand, which its version does not show.
    """

    __slots__ = ("fixed", "known", "layout", "place", "static", "target", "version", "volatile")

    def __init__(self, place: int, static: Tensor, *, fixed: bool = False, volatile: bool = True) -> None:
        self.place, self.static, self.fixed, self.volatile = place, static, fixed, volatile
        self.layout = layout_of(static)
        self.target = static if fixed else _distinct(static)
        self.known: weakref.ref[Tensor] | None = None
        self.version = -1

    def takes(self, value: object) -> bool:
        return value is self.static or (
            not self.fixed and isinstance(value, Tensor) and layout_of(value) == self.layout
        )

    def fill(self, value: Tensor) -> None:
        if value is self.static:
            return
        reference = weakref.ref(value)  # CPython makes one for each object
        [version] = versions((value,))
        if self.volatile or version < 0 or reference is not self.known or version != self.version:
            self.target.copy_(value if self.target is self.static else _distinct(value))
            self.known, self.version = reference, version


class SegmentGraph:
    """Raises ``Unrecordable``, and whatever the recorder raises."""

    def __init__(
        self,
        place: SegmentPlace,
        args: Sequence[Any],
        recorder: Recorder,
        code: Callable[..., Sequence[Any]],
        earlier: Mapping[int, Output],
        memory: set[int],
    ) -> None:
        """``earlier`` are outputs of recorded segments that run before this one, by ``id``; ``memory`` are the
        addresses of all storages that replays write into."""
        weights = [args[i] for i in place.weights]
        tensors = {i: args[i] for i in place.others if isinstance(args[i], Tensor)}
        for tensor in (*weights, *tensors.values()):
            _check(tensor, recorder.device)
        self._take = _taker(place.weights)
        self._are_there = address_check(weights)
        self._numbers = [(i, args[i]) for i in place.others if i not in tensors]
        self._inputs = [_input(i, tensor, earlier, memory) for i, tensor in tensors.items()]
        operands = list(args)
        for i, weight in zip(place.weights, weights, strict=True):
            operands[i] = weight.data  # an output that is a view of a weight must not keep the parameter alive
        for one in self._inputs:
            one.fill(tensors[one.place])
            operands[one.place] = one.static
        recorded = recorder.record(functools.partial(code, *operands))
        self.outputs, self._replay = recorded.outputs, recorded.replay
        given = {_address(one) for one in operands if isinstance(one, Tensor)}
        made = [output for output in self.outputs if isinstance(output, Tensor)]
        uses = Counter(map(_address, made))
        self.returned = [
            Output(one, _address(one) not in given and uses[_address(one)] == 1, not place.skippable) for one in made
        ]
        self.memory = {*uses, *(_address(one.static) for one in self._inputs)}
        writable = len(made) == len(self.outputs) and all(output.writable for output in self.returned)
        self.room = made if writable else None  # where a forecast may be written in place of the outputs

    def weights_are_there(self, args: Sequence[Any]) -> bool:
        """Whether the weights are where they were when the graph was recorded."""
        return self._are_there(self._take(args))

    def replay(self, args: Sequence[Any]) -> Sequence[Any] | None:
        """The outputs for ``args``, in static tensors; None where ``args`` are not of the layout that was recorded, as
        where sizes depend on the data."""
        if any([args[i] != number for i, number in self._numbers]):  # noqa: C419 - no generator: at every call
            return None
        for one in self._inputs:
            if not one.takes(args[one.place]):
                return None
        for one in self._inputs:
            one.fill(args[one.place])
        self._replay()
        return self.outputs


def layout_of(tensor: Tensor) -> Layout:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def copy_of(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as ``tensor`` does."""
    room = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    _distinct(room).copy_(_distinct(tensor))
    return room


def _input(place: int, tensor: Tensor, earlier: Mapping[int, Output], memory: set[int]) -> _Input:
    output = earlier.get(id(tensor))
    if output is not None and (output.writable or output.steady):
        return _Input(place, tensor, fixed=not output.writable)
    with torch.inference_mode(False), torch.no_grad():  # a normal tensor, which can be written into at any time
        return _Input(place, copy_of(tensor), volatile=_address(tensor) in memory)


def _check(tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise Unrecordable(f"an operand is on {tensor.device}, the others on {device}")
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise Unrecordable(f"an operand is a {type(tensor).__name__}, whose memory is not known")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _distinct(tensor: Tensor) -> Tensor:
    """A view of ``tensor`` with each element once, where it is expanded."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _taker(places: tuple[int, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Takes the values at ``places``: a large model has a thousand weights, which are looked at on every call."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda args: tuple(args[place] for place in places)
