"""A compiled graph, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..plans import Cut
from .cuda_graphs import GraphedCode
from .rows import RowPlaces
from .watched import BoundPlaces


@dataclass(frozen=True)
class ClockPlaces:
    """Where the clock's inputs stand in the argument list of the graph."""

    owner: tuple[int, ...]
    moving: tuple[int, ...]
    timestep: int | None
    conditioning: tuple[int, ...]
    side: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    fixed_time: float | None = None  # the time that the graph serves alone, where it has no input for it
    resumed: bool = False  # the graph is what follows a graph break


@dataclass(frozen=True, eq=False)
class CutCode:
    """The top-level graph of one cut, compiled: ``forward(step, *args)``.

    ``tap`` is what its guards measure. Of each region: ``rows`` says how rows are taken from its operands, or why they
    cannot be, ``mains`` which of its outputs is the main stream (None: unknown), ``skipped`` how many of all ``blocks``
    it skips. Graphs of one function with equal ``signature`` share snapshots. ``graphed`` runs ``forward`` with CUDA
    graphs, where they can be used.
    """

    forward: Callable[..., Any]
    cut: Cut
    tap: str
    rows: tuple[RowPlaces | str, ...]
    mains: tuple[int | None, ...]
    skipped: tuple[int, ...] = ()
    blocks: int = 1
    signature: object = None
    graphed: GraphedCode | None = None


@dataclass(frozen=True)
class Code:
    """A compiled graph. ``cuts[0]`` is what guards run; one that a plan asks for may follow.

    ``frame`` numbers the function that Dynamo took the graph from; None: a graph of its own. ``structure`` is a digest
    of the graph's operators, equal in every process. ``bound`` are weights that a call does not pass.
    """

    cuts: tuple[CutCode, ...]
    places: ClockPlaces
    name: str
    frame: int | None = None
    structure: str = ""
    bound: BoundPlaces | None = None


def without_code(code: Code) -> Code:
    """``code`` where each ``forward`` is kept apart from what is known of it."""
    return with_code(code, [_no_code] * len(code.cuts))


def with_code(code: Code, forwards: Sequence[Callable[..., Any]]) -> Code:
    """``code`` with these ``forwards`` of its cuts."""
    cuts = tuple(replace(cut, forward=forward) for cut, forward in zip(code.cuts, forwards, strict=True))
    return replace(code, cuts=cuts)


def _no_code(*args: Any) -> Any:
    raise AssertionError("the code of this graph is kept apart")
