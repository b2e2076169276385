"""CUDA graphs with the cache on: front, region and tail are recorded and replayed separately.

The guard, the forecast and the stores run between the replays as they do without graphs. All graphs of one call form a
``LayoutGraphs``: they are recorded in the order in which they run, so that no replay overwrites what a later one of the
same call reads, and a segment that reads what an earlier one returns reads it where it is. A forecast is written where
the region's graph would have written.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .recorder import RECORDERS, Recorder, Timer
from .segment_graph import Output, SegmentGraph, SegmentPlace, Unrecordable, copy_of, layout_of

log = logging.getLogger("dit_compile")

MOST_LAYOUTS = 4  # of one graph of one module: further shapes run without
SHORT = 0.5  # of the device's time: a segment that takes the host less than this is not worth a graph
MOST_MOVES = 3  # after which weights that move once more end the use of graphs
TOO_MANY = f"a model is called with more than {MOST_LAYOUTS} shapes or numbers, further ones run without CUDA graphs"
TWO_AT_ONCE = "two threads call one model at the same time, one of them runs without CUDA graphs"

Say = Callable[[object, str], None]


class _Here(threading.local):
    graphs: LayoutGraphs | None = None  # of the call under way in this thread


_here = _Here()


class GraphedSegment:
    """Stands in the top-level graph where the ``code`` of a segment was."""

    __slots__ = ("code", "place")

    def __init__(self, code: Callable[..., Sequence[Any]], place: SegmentPlace) -> None:
        self.code, self.place = code, place

    def __call__(self, *args: Any) -> Sequence[Any]:
        graphs = _here.graphs
        return self.code(*args) if graphs is None else graphs.run(self, args)


def without_graph(segment: Callable[..., Any]) -> Callable[..., Any]:
    """The code of ``segment``, for operands that are not those of the whole batch."""
    return segment.code if isinstance(segment, GraphedSegment) else segment


def room_in_graph(region: Callable[..., Any], like: Sequence[Any]) -> list[Tensor] | None:
    """Where the recorded ``region`` writes its outputs, to write a forecast there; None where it is not recorded or its
    outputs are not ``like`` these (shape, dtype)."""
    graphs = _here.graphs
    if graphs is None or not isinstance(region, GraphedSegment):
        return None
    room = graphs.room(region.place.number)
    if room is None or len(room) != len(like):
        return None
    fits = all(mine.shape == one.shape and mine.dtype == one.dtype for mine, one in zip(room, like, strict=True))
    return room if fits else None


class _Progress:
    """How far one segment of one layout has come."""

    __slots__ = ("calls", "graph", "host", "refusal", "timer")

    def __init__(self, refusal: str | None) -> None:
        self.calls = 0
        self.graph: SegmentGraph | None = None
        self.refusal = refusal
        self.timer: Timer | None = None  # of the device, until it is known; ``host`` are the host's seconds
        self.host = 0.0


class LayoutGraphs:
    """The graphs of one graph of one module for operands of one layout (shapes, strides, dtypes, numbers)."""

    def __init__(self, places: Sequence[SegmentPlace], recorder: Recorder, *, measure: bool, say: Say) -> None:
        self.recorder = recorder
        self._measure, self._say = measure, say
        self._segments = [_Progress(place.refusal) for place in places]
        self._names = [place.name for place in places]
        self._static: dict[int, Output] = {}  # by id
        self._memory: set[int] = set()  # addresses of storages that a replay overwrites
        self._moves = 0
        self.text = ""
        for place in places:
            if place.refusal is not None:
                self._tell(place.name, place.refusal)
        self._describe()

    def run(self, segment: GraphedSegment, args: Sequence[Any]) -> Sequence[Any]:
        """What ``segment`` returns for ``args``: from its graph, or by running it."""
        number = segment.place.number
        one = self._segments[number]
        if one.graph is not None:
            if not one.graph.weights_are_there(args):
                self._moved()
                return segment.code(*args)
            return self._replayed(one.graph, segment, args)
        if one.refusal is not None:
            return segment.code(*args)
        one.calls += 1
        if one.calls == 1:  # compiles kernels, chooses among them
            return segment.code(*args)
        if self._measure and one.calls == 2:
            return self._measured(one, segment, args)
        if one.timer is not None and not self._is_short(one, one.timer, segment.place.name):
            return segment.code(*args)
        if any(earlier.graph is None and earlier.refusal is None for earlier in self._segments[:number]):
            return segment.code(*args)  # graphs are recorded in the order in which they run
        self._record(one, segment, args)
        return segment.code(*args) if one.graph is None else self._replayed(one.graph, segment, args)

    def _replayed(self, graph: SegmentGraph, segment: GraphedSegment, args: Sequence[Any]) -> Sequence[Any]:
        outputs = graph.replay(args)
        return segment.code(*args) if outputs is None else outputs

    def room(self, number: int) -> list[Tensor] | None:
        graph = self._segments[number].graph
        return None if graph is None else graph.room

    def owned(self, results: Any) -> Any:
        """``results`` of the model, with copies of what a later replay overwrites."""
        if not self._memory:
            return results
        return type(results)(
            copy_of(one) if isinstance(one, Tensor) and one.untyped_storage().data_ptr() in self._memory else one
            for one in results
        )

    def _measured(self, one: _Progress, segment: GraphedSegment, args: Sequence[Any]) -> Sequence[Any]:
        timer = one.timer = self.recorder.timer()
        start = time.perf_counter()
        outputs = segment.code(*args)
        one.host = time.perf_counter() - start
        timer.stop()
        return outputs

    def _is_short(self, one: _Progress, timer: Timer, name: str) -> bool:
        """Whether the device waits for the host while the segment runs, as far as is known: its time is then the
        host's."""
        if not timer.ready():
            return False
        seconds, one.timer = timer.seconds(), None
        if one.host < SHORT * seconds:
            self._refuse(one, name, f"its {seconds * 1e3:.3g} ms on the device cover the host's {one.host * 1e3:.3g}")
            return False
        return True

    def _record(self, one: _Progress, segment: GraphedSegment, args: Sequence[Any]) -> None:
        place = segment.place
        try:
            graph = SegmentGraph(place, args, self.recorder, segment.code, self._static, self._memory)
        except Unrecordable as error:
            self._refuse(one, place.name, str(error), loud=True)
            return
        except Exception as error:
            text = str(error).strip().splitlines()
            self._refuse(
                one, place.name, f"recording it failed: {type(error).__name__}: {text[0] if text else ''}", loud=True
            )
            log.debug("dit_cache: a CUDA graph could not be recorded", exc_info=True)
            return
        if not _same(graph.replay(args), segment.code(*args)):
            self._refuse(one, place.name, "its first replay gave other numbers than running it", loud=True)
            return
        one.graph = graph
        self._memory |= graph.memory
        self._static.update({id(output.tensor): output for output in graph.returned})
        self._describe()

    def _moved(self) -> None:
        """Weights are elsewhere: what was recorded reads memory that may hold anything."""
        self._moves += 1
        self._static.clear()
        ends = self._moves > MOST_MOVES
        for name, one in zip(self._names, self._segments, strict=True):
            if one.graph is not None:
                one.graph = None
                if ends:
                    self._refuse(one, name, "the weights keep moving, as where they are offloaded", loud=True)
        self._describe()

    def _refuse(self, one: _Progress, name: str, why: str, *, loud: bool = False) -> None:
        one.refusal = why
        if loud:
            self._tell(name, why)
        self._describe()

    def _tell(self, name: str, why: str) -> None:
        self._say(("cuda_graphs", why), f"dit_cache: no CUDA graph for {name}: {why}")

    def _describe(self) -> None:
        used = sum(one.graph is not None for one in self._segments)
        reasons = {
            one.refusal: name for name, one in zip(self._names, self._segments, strict=True) if one.refusal is not None
        }
        self.text = "; ".join(
            [f"{used} of {len(self._segments)} segments", *(f"{name}: {why}" for why, name in reasons.items())]
        )


def _same(replayed: Sequence[Any] | None, run: Sequence[Any]) -> bool:
    """Whether two results of a segment are equal bit for bit. The host waits for the device, once per recording."""
    return replayed is not None and all(
        torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) if isinstance(one, Tensor) else one == other
        for one, other in zip(replayed, run, strict=True)
    )


class ModuleGraphs:
    """The graphs of one module; one call at a time uses them. ``say(key, message)`` logs a message once."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.busy = threading.Lock()
        self._recorders: dict[torch.device, Recorder] = {}
        self._layouts: weakref.WeakKeyDictionary[GraphedCode, dict[object, LayoutGraphs]] = weakref.WeakKeyDictionary()

    def of(self, code: GraphedCode, args: Sequence[Any]) -> LayoutGraphs | None:
        """Those for a call of ``code`` with ``args``; None where there are too many layouts."""
        values = [args[i] for i in code.others]
        key = (
            torch.is_inference_mode_enabled(),
            *[layout_of(value) if isinstance(value, Tensor) else value for value in values],
        )
        known = self._layouts.setdefault(code, {})
        graphs = known.get(key)
        if graphs is None and len(known) < MOST_LAYOUTS:
            recorder = self._recorders.get(code.device)
            if recorder is None:
                recorder = self._recorders[code.device] = RECORDERS[code.device.type](code.device)
            graphs = known[key] = LayoutGraphs(code.places, recorder, measure=code.measure, say=self.say)
        elif graphs is None:
            self.say(("cuda_graphs", "layouts"), f"dit_cache: {TOO_MANY}")
        return graphs


class Ran(NamedTuple):
    results: Any
    used: str  # which segments were replayed, and why others were not


class GraphedCode:
    """A top-level graph whose segments are recorded.

    ``places`` are its segments in the order in which they run, ``others`` the places of its inputs that are no weights.
    ``measure``: only what is short on the device is recorded. Holds no code, so that it can be pickled.
    """

    def __init__(
        self, places: Sequence[SegmentPlace], others: tuple[int, ...], device: torch.device, *, measure: bool
    ) -> None:
        self.places, self.others, self.device, self.measure = places, others, device, measure
        self._by_name = {place.name: place for place in places}

    def wrap(self, name: str, code: Callable[..., Any]) -> Callable[..., Any]:
        """What the top-level graph calls in place of ``code``, the segment ``name``."""
        return GraphedSegment(code, self._by_name[name])

    def wrap_all(self, graph: object) -> None:
        """The same for all segments, attributes of ``graph``, which was loaded."""
        for place in self.places:
            setattr(graph, place.name, GraphedSegment(getattr(graph, place.name), place))

    def run(
        self, module: ModuleGraphs, forward: Callable[..., Any], step: object, args: Sequence[Any]
    ) -> Ran:  # fmt: skip
        """``forward(step, *args)``; tensors among the results are the caller's to keep."""
        if not module.busy.acquire(blocking=False):
            module.say(("cuda_graphs", "busy"), f"dit_cache: {TWO_AT_ONCE}")
            return Ran(forward(step, *args), f"no segment: {TWO_AT_ONCE}")
        try:
            graphs = module.of(self, args)
            if graphs is None:
                return Ran(forward(step, *args), f"no segment: {TOO_MANY}")
            if not graphs.recorder.enter():
                return Ran(forward(step, *args), "no segment: the stream was being captured")
            before, _here.graphs = _here.graphs, graphs
            try:
                results = graphs.owned(forward(step, *args))
            finally:
                _here.graphs = before
            return Ran(results, graphs.text)
        finally:
            module.busy.release()
