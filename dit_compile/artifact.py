"""A compiled graph of this backend as it is kept for another process, and how it comes back.

Dynamo keeps its own part: the code around the graph, and the guards. Where it does (``recorded_id``), the backend
records a ``GraphArtifact`` for each graph, which Dynamo's loader turns into the callable again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from .api import process_overrides, reports, table
from .compat import counters, current_compilation
from .compat.precompile import portable_pieces, recorded_id
from .config import STRUCTURE, CacheConfig
from .debug.messages import say_compiled
from .debug.report import GraphReport
from .policy import POLICIES
from .program import NotPortable, Program, take
from .runtime.cached_graph import CachedGraph
from .runtime.code import Code, with_code
from .runtime.earlier_frame import Places, leaving_inputs
from .runtime.watched import under_way

Layers = Sequence[Mapping[str, Any]]
_WITHOUT_EFFECT = {"dump", "strict"}  # on the code


def settings_key(config: CacheConfig, patches: Mapping[str, Any]) -> dict[str, str]:
    """What compiled code depends on, as texts: settings of ours that are structure, and Inductor's ``patches``."""
    ours = {name: repr(getattr(config, name)) for name in ("enabled", *sorted(STRUCTURE - _WITHOUT_EFFECT))}
    if config.enabled:
        ours["what guards watch"] = repr(POLICIES.instance(config.guard_policy).tap(config))
        parts = () if config.plan is None else config.plan.parts
        ours["cuts of plans"] = repr(sorted({(part.conditions.structure, part.cut) for part in parts}))
    return {**ours, **{f"{name} of Inductor": repr(patches[name]) for name in patches}}


def activate(code: Code, report: GraphReport, layers: Layers) -> Callable[..., Any]:
    """The callable that Dynamo runs for a cached graph, which from now on is one of ``graphs()``."""
    cached = CachedGraph(code, layers, table, process_overrides)
    reports.add(report)
    say_compiled(report)
    counters()["dit_cache"]["graphs"] += 1
    counters()["dit_cache"]["pieces"] += report.pieces
    counters()["dit_cache"]["fixed_numbers"] += len(report.fixed_numbers)

    def forward(*args: Any) -> Any:
        return cached(*args)

    return forward


@dataclass(frozen=True)
class GraphArtifact:
    """One graph: its ``programs`` (several where it was cut in several ways), and what is known of it.

    ``code`` is set for a cached graph (``forward`` of its cuts is what the programs give). Of one that is not cached,
    ``report`` says why, ``places`` what it tells later parts of a broken model. ``settings``: see ``settings_key``.
    """

    programs: tuple[Program, ...]
    settings: Mapping[str, str]
    code: Code | None = None
    report: GraphReport | None = None
    places: Places | None = None
    resumed: bool = False

    def restore(self, layers: Layers) -> Callable[..., Any]:
        """The callable for Dynamo. ``layers`` are environment and options of this process."""
        runs = [program.run() for program in self.programs]
        if self.code is not None and self.report is not None:
            compilation = current_compilation()
            for cut, forward in zip(self.code.cuts, runs, strict=True):
                if cut.graphed is not None:
                    cut.graphed.wrap_all(getattr(forward, "__self__", None))
            frame = compilation.function if compilation is not None else None
            return activate(replace(with_code(self.code, runs), frame=frame), self.report, layers)
        [run] = runs
        if self.report is not None:
            reports.add(self.report)
        return run if self.places is None else leaving_inputs(run, self.places, resumed=self.resumed)


class Recorder:
    """Keeps what is made of the graph ``gm``, if somebody asked for it; does nothing otherwise."""

    def __init__(self, gm: GraphModule, config: CacheConfig, patches: Mapping[str, Any]) -> None:
        watched = under_way.get()
        self._name = recorded_id(gm) if watched is not None else None
        self._record = watched.record if watched is not None else None
        self._settings = settings_key(config, patches) if self._name is not None else {}

    def compiling(self) -> AbstractContextManager[None]:
        """Pieces are to be compiled inside of this."""
        return portable_pieces() if self._name is not None else nullcontext()

    def keep(self, *runs: Callable[..., Any], **facts: Any) -> None:
        """Records ``runs``, as ``GraphArtifact`` with ``facts``, or why that is not possible."""
        if self._name is None or self._record is None:
            return
        try:
            self._record(self._name, GraphArtifact(tuple(map(take, runs)), self._settings, **facts))
        except NotPortable as error:
            self._record(self._name, str(error))
