"""Says where and why Dynamo cut the model into several graphs, and the way out, for a graph that holds only a part.

Causes and ways out are those of ``break_kinds``.
"""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx import GraphModule

from ..compat import backends_in_use, compilations, graph_break_reasons
from .break_kinds import KINDS, Kind

_RESUMED = re.compile(r"torch_dynamo_resume_in_(\w+)_at_\d+")  # Dynamo's name for the rest of a function
_NAMED = re.compile(
    r"<(?:bound method|function) ([\w.<>]+)|<Logger [^>]*>\.(\w+)|builtin(?: operator)? `([\w.<> ]+?)\.?`"
)
_INSIDE = "Got graph break/error:\n\n"  # Dynamo puts this in front of what it says of a break in an operator's body
_LIBRARIES = (str(Path(torch.__file__).parent), sysconfig.get_paths()["stdlib"])
_PACKAGES = (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"])


@dataclass(frozen=True)
class Break:
    """A place where Dynamo stopped tracing: the functions that were being traced, outermost first, and its reason."""

    frames: tuple[traceback.FrameSummary, ...]
    text: str

    @property
    def frame(self) -> traceback.FrameSummary:
        """The innermost function that belongs neither to torch nor to Python."""
        return next((frame for frame in reversed(self.frames) if not _in_library(frame.filename)), self.frames[-1])

    @property
    def line(self) -> str:
        return self.frame.line or linecache.getline(self.frame.filename, self.frame.lineno or 0).strip()

    @property
    def kind(self) -> Kind:
        files = [Path(frame.filename).as_posix() for frame in self.frames]
        return next(kind for kind in KINDS if kind.matches(self.text, files, self.line))

    @property
    def key(self) -> str:
        """The same for all breaks that a user would call one."""
        return f"{self.kind.name} in {self.frame.filename}"

    def __str__(self) -> str:
        ways = [way.text.format(function=self.function) for way in self.kind.ways if way.advised]
        advice = "Way out: " if self.kind.remedy else "No way is known to keep this in the graph. Instead: "
        return f"Dynamo broke the graph at {self.place}: {self.cause}. {advice}{'; or '.join(ways)}"

    @property
    def function(self) -> str:
        named = _NAMED.search(self.text)
        return next(filter(None, named.groups())) if named else "a function"

    @property
    def cause(self) -> str:
        title = self.text.strip().splitlines()[0].rstrip(".")
        return self.kind.cause.format(function=self.function, title=title)

    @property
    def place(self) -> str:
        path = Path(self.frame.filename)
        return f"{path.parent.name}/{path.name}:{self.frame.lineno} `{self.line}`"

    @property
    def setting(self) -> tuple[str, Any] | None:
        """The setting with which Dynamo goes on (``Kind.setting``). A kind told by its line may hide another one."""
        kinds = (kind for kind in KINDS if kind.text and re.search(kind.text, self.text))
        return next(filter(None, (kind.setting(self.function) for kind in kinds)), None)


@dataclass(frozen=True)
class Part:
    """What is known of a graph that holds a part of the model. ``hopeless`` says whether its blocks are apart for sure
    (a block is executed by itself, or the model ends and nothing can follow), None when its blocks are not known."""

    cut: Break
    hopeless: bool | None


def find_part(gm: GraphModule) -> Part | None:
    """None when ``gm`` holds all of what was compiled.

    Must be called while Dynamo compiles ``gm``: a graph does not say what it is a part of. The functions that Python
    executes at this moment do, as those of them that Dynamo has seen were traced in part only.
    """
    end = getattr(gm, "compile_subgraph_reason", None)
    own = _break(end) if end is not None and end.graph_break else None
    running = _running()
    cut = own or next(filter(None, (_cut_of(*known) for known in running)), None)
    if cut is None:
        return None
    if own is None and end is not None and end.user_stack and _returns_from_all(end.user_stack[0], running):
        return Part(cut, hopeless=True)
    return Part(cut, hopeless=_are_apart(running))


def _running() -> list[tuple[FrameType, int, Any]]:
    """The functions that are being executed, innermost first: frame, line, and what Dynamo noted last of the function
    (None if it never saw it)."""
    notes = {(metric.co_filename, metric.co_firstlineno): metric for metric in compilations()}
    stack = traceback.walk_stack(None)
    return [(f, line, notes.get((f.f_code.co_filename, f.f_code.co_firstlineno))) for f, line in stack]


def _returns_from_all(end: traceback.FrameSummary, running: list[tuple[FrameType, int, Any]]) -> bool:
    """Whether a graph that returns at ``end`` is the end of the outermost function that was traced, too."""
    traced = [note for _, _, note in running if note is not None and note.fail_type is None]
    if not traced:
        return False
    rest = [(note.co_filename, note.co_name) for note in traced[:-1]] + [(end.filename, end.name)]
    resumed = ((file, _RESUMED.fullmatch(name or "")) for file, name in rest)
    return all(match and (file, match[1]) == (traced[-1].co_filename, traced[-1].co_name) for file, match in resumed)


def _are_apart(running: list[tuple[FrameType, int, Any]]) -> bool | None:
    """Whether a block is executed by itself, or Dynamo gave up on the ``forward`` that loops over the blocks. None
    when the model has no list of modules that may be its blocks."""
    modules = [(_module(frame), note) for frame, _, note in running]
    model = next((module for module, _ in reversed(modules) if module is not None), None)
    lists = [
        m for m in (model.modules() if model is not None else ()) if isinstance(m, torch.nn.ModuleList) and len(m) > 2
    ]
    if not lists:
        return None
    blocks = max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))
    inside, outermost = False, None
    for module, note in reversed(modules):
        inside = inside or (module is not None and blocks not in module.modules())
        gave_up = note is not None and "graph break in loop" in (note.fail_reason or "")
        if note is not None and (gave_up or note.fail_type is None):  # not what wraps the model and is not traced
            function = (note.co_filename, _RESUMED.sub(r"\1", note.co_name or ""))
            outermost = outermost or function
            gave_up = gave_up and function == outermost
        if (gave_up and not inside) or any(module is block for block in blocks):
            return True
    return False


def _module(frame: FrameType) -> torch.nn.Module | None:
    named = (frame.f_locals.get(name) for name in ("self", "module"))
    return next((value for value in named if isinstance(value, torch.nn.Module)), None)


def latest_break() -> Break | None:
    """The last place where Dynamo stopped, for a model of which no graph was handed over; None if there is none or if
    nothing was called that ``torch.compile`` made for this backend."""
    functions = [getattr(backend, "compiler_fn", backend) for backend in backends_in_use()]
    if not any(getattr(function, "__name__", "") == "dit_cache" for function in functions):
        return None
    return next((cut for metric in reversed(compilations()) if (cut := _cut_within(metric))), None)


def break_of(error: BaseException) -> Break | None:
    """The break for which Dynamo raised ``error`` where breaks are errors; None if it does not say where it was."""
    found: Break | None = None
    at: BaseException | None = error
    while at is not None:
        frames = tuple(getattr(at, "real_stack", None) or ())
        if frames:  # the first cause knows best
            found = Break(frames, str(getattr(at, "msg", at)).rpartition(_INSIDE)[2])
        at = at.__cause__
    return found


class BreaksSince:
    """What broke graphs in this process since the object was made."""

    def __init__(self) -> None:
        self._reasons = len(graph_break_reasons())
        self._notes = {id(metric) for metric in compilations()}

    def __iter__(self) -> Iterator[Break]:
        noted = [_failure(metric) for metric in compilations() if id(metric) not in self._notes]
        yield from filter(None, (*map(_break, graph_break_reasons()[self._reasons :]), *noted))


def _cut_within(metric: Any) -> Break | None:
    """Why Dynamo did not trace all of the function that ``metric`` tells of, None if it did."""
    name = _RESUMED.sub(r"\1", metric.co_name or "")
    cuts = (cut for cut in map(_break, reversed(graph_break_reasons())) if cut is not None)
    place = (metric.co_filename, name)
    return _failure(metric) or next((c for c in cuts if (c.frames[0].filename, c.frames[0].name) == place), None)


def _cut_of(frame: FrameType, line: int, note: Any) -> Break | None:
    """Why Dynamo traced only a part of the function that now executes ``line``, None if it did not begin to."""
    failed = _failure(note) if note is not None else None
    if failed is not None:
        return failed
    place = (frame.f_code.co_filename, line)
    cuts = (cut for cut in map(_break, reversed(graph_break_reasons())) if cut is not None)
    return next((cut for cut in cuts if (cut.frames[0].filename, cut.frames[0].lineno) == place), None)


def _break(reason: Any) -> Break | None:
    frames = tuple(reason.user_stack or ())
    return Break(frames, reason.reason) if frames else None


def _failure(metric: Any) -> Break | None:
    """The break for which Dynamo gave up on a function: it does not resume inside a loop."""
    if metric.fail_type != "Unsupported" or not metric.fail_user_frame_filename:
        return None
    end = (metric.fail_user_frame_filename, metric.fail_user_frame_lineno)
    for cut in map(_break, graph_break_reasons()):  # the same break, seen from another function, has all frames
        if cut is not None and (cut.frames[-1].filename, cut.frames[-1].lineno) == end:
            return Break(cut.frames, metric.fail_reason)
    return Break((traceback.FrameSummary(*end, metric.co_name),), metric.fail_reason)


def _in_library(filename: str) -> bool:
    return filename.startswith(_LIBRARIES) and (
        filename.startswith(_LIBRARIES[0]) or not filename.startswith(_PACKAGES)
    )
