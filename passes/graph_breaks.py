"""Says where and why Dynamo cut the model into several graphs, and the way out, for a graph that holds only a part.

``KINDS`` is the table of causes. Each way out in it was tried: tests/backend/test_graph_breaks.py breaks a graph, reads
the message, applies the way out and finds the blocks cached.
"""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx import GraphModule

from ..compat import backends_in_use, compilations, graph_break_reasons, has_dynamo_setting

_RESUMED = re.compile(r"torch_dynamo_resume_in_(\w+)_at_\d+")  # Dynamo's name for the rest of a function
_NAMED = re.compile(
    r"<(?:bound method|function) ([\w.<>]+)|<Logger [^>]*>\.(\w+)|builtin(?: operator)? `([\w.<> ]+?)\.?`"
)
_LIBRARIES = (str(Path(torch.__file__).parent), sysconfig.get_paths()["stdlib"])
_PACKAGES = (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"])


@dataclass(frozen=True)
class Way:
    """Something that was tried and helped. Not advised where ``torch._dynamo.config`` has no ``switch``."""

    name: str
    text: str
    switch: str = ""


@dataclass(frozen=True)
class Kind:
    """A cause of graph breaks. It is recognised by Dynamo's ``text``, by the ``file`` of a function that was being
    traced and by the source ``line``: each pattern that is given must be found.

    ``cause`` and ways may name the function that Dynamo speaks of as ``{function}``. Without a ``remedy`` nothing keeps
    such code in the graph, and the ways are what to do instead.
    """

    name: str
    cause: str
    ways: tuple[Way, ...]
    text: str = ""
    file: str = ""
    line: str = ""
    remedy: bool = True

    def matches(self, cut: Break) -> bool:
        return (
            re.search(self.text, cut.text) is not None
            and any(re.search(self.file, Path(frame.filename).as_posix()) for frame in cut.frames)
            and re.search(self.line, cut.line) is not None
        )


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
        return next(kind for kind in KINDS if kind.matches(self))

    @property
    def key(self) -> str:
        """The same for all breaks that a user would call one."""
        return f"{self.kind.name} in {self.frame.filename}"

    def __str__(self) -> str:
        kind, path = self.kind, Path(self.frame.filename)
        named = _NAMED.search(self.text)
        function = next(filter(None, named.groups())) if named else "a function"
        title = self.text.strip().splitlines()[0].rstrip(".")
        cause = kind.cause.format(function=function, title=title)
        ways = [
            way.text.format(function=function) for way in kind.ways if not way.switch or has_dynamo_setting(way.switch)
        ]
        advice = "Way out: " if kind.remedy else "No way is known to keep this in the graph. Instead: "
        where = f"{path.parent.name}/{path.name}:{self.frame.lineno} `{self.line}`"
        return f"Dynamo broke the graph at {where}: {cause}. {advice}{'; or '.join(ways)}"


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


_IGNORE = "torch._dynamo.config.ignore_logging_functions.add"
_MODEL_OFFLOAD = Way(
    "model offload",
    "offload whole models with pipe.enable_model_cpu_offload(); with fullgraph=True call it after torch.compile",
)
_BRANCH = (
    Way("where", "compute both cases and choose with torch.where"),
    Way("argument", "decide outside of the model and pass a Python bool as an argument"),
)
_CONSTANT = (
    Way("before", "call it once before the model runs, in __init__ for example, and keep the result"),
    Way("constant", "if it always gives the same, put it into a function under @torch.compiler.assume_constant_result"),
)
_OPERATOR = Way("operator", "if it takes and gives tensors, wrap it as an operator with torch.library.custom_op")

# The first that matches counts: hooks are recognised before what they do.
KINDS = (
    Kind(
        "group offloading",
        "group offloading of diffusers moves weights inside the model, in hooks that Dynamo does not trace",
        (
            _MODEL_OFFLOAD,
            Way(
                "quantize", "store the weights in 8 bits: torchao.quantization.quantize_(model, Int8WeightOnlyConfig())"
            ),
        ),
        file=r"diffusers/hooks/group_offloading\.py$",
        remedy=False,
    ),
    Kind(
        "layerwise casting",
        "layerwise casting of diffusers replaces the weights of each layer whenever it is called",
        (
            Way(
                "quantize",
                "store the weights in 8 bits with torchao.quantization.quantize_(model, Float8WeightOnlyConfig())",
            ),
        ),
        file=r"diffusers/hooks/layerwise_casting\.py$",
        remedy=False,
    ),
    Kind(
        "sequential offload",
        "hooks of accelerate move weights inside the model (enable_sequential_cpu_offload, cpu_offload, device_map), "
        "and Dynamo does not trace them",
        (_MODEL_OFFLOAD,),
        file=r"accelerate/hooks\.py$",
        remedy=False,
    ),
    Kind(
        "print",
        "print is called",
        (
            Way("remove", "remove the call"),
            Way("ignore", f"{_IGNORE}(print), after which compiled code prints nothing", "ignore_logging_functions"),
        ),
        text=r"builtin operator `print`",
    ),
    Kind(
        "logging",
        "a logger is called",
        (
            Way("remove", "remove the call"),
            Way(
                "ignore",
                f"{_IGNORE}(logging.Logger.{{function}}), after which compiled code does not log it",
                "ignore_logging_functions",
            ),
        ),
        text=r"logging\.Logger method",
    ),
    Kind(
        "warnings",
        "warnings.warn is called",
        (
            Way("remove", "remove the call"),
            Way(
                "ignore",
                f"{_IGNORE}(warnings.warn), after which compiled code does not warn",
                "ignore_logging_functions",
            ),
        ),
        text=r"_warnings\.warn`",
    ),
    Kind(
        "signature",
        "the signature of a function is inspected in a way that Dynamo does not trace",
        _CONSTANT,
        file=r"/inspect\.py$",
    ),
    Kind(
        "sizes",
        "the size of a tensor depends on the values of another (nonzero, unique, a boolean mask)",
        (
            Way(
                "switch",
                "torch._dynamo.config.capture_dynamic_output_shape_ops = True",
                "capture_dynamic_output_shape_ops",
            ),
            Way("fullgraph", "fullgraph=True, which raises an error if the size cannot be traced"),
        ),
        text=r"^Dynamic shape operator",
    ),
    Kind(
        "branch",
        "a branch depends on the values of a tensor",
        _BRANCH,
        text=r"^(Data-dependent (branching|assertion)|generic_jump)",
    ),
    Kind(
        "branch on a number",
        "a branch depends on a number that is read from a tensor",
        _BRANCH,
        text=r"Tensor\.item\(\)|_local_scalar_dense",
        line=r"\b(if|while|assert|and|or|not)\b",
    ),
    Kind(
        "number",
        "a number is read from a tensor (.item(), .tolist(), int(), float())",
        (
            Way(
                "switch",
                "if it is an integer, torch._dynamo.config.capture_scalar_outputs = True",
                "capture_scalar_outputs",
            ),
            Way("fullgraph", "if it is an integer, fullgraph=True, which raises an error if it cannot be traced"),
            Way("tensor", "if it is a float, compute with the tensor instead"),
        ),
        text=r"Tensor\.item\(\)|Tensor\.tolist\(\)|_local_scalar_dense",
    ),
    Kind(
        "context manager",
        "a context manager is entered that Dynamo does not know",
        (
            Way("argument", "pass what it sets as arguments (device=...)"),
            Way("outside", "enter it before the model is called"),
        ),
        text=r"^Unsupported context manager",
    ),
    Kind(
        "graph_break",
        "torch._dynamo.graph_break() is called",
        (Way("remove", "remove the call"),),
        text=r"torch\._dynamo\.graph_break\(\)",
    ),
    Kind(
        "disabled",
        "{function} is under torch.compiler.disable",
        (Way("remove", "remove torch.compiler.disable"), _OPERATOR),
        text=r"torch\.compiler\.disable",
    ),
    Kind(
        "builtin",
        "{function} is not written in Python, or Dynamo is told to skip it",
        (*_CONSTANT, _OPERATOR),
        text=r"^(Attempted to (call|inline) function marked as skipped|Failed to trace builtin operator)",
    ),
    Kind(
        "unknown",
        "Dynamo says `{title}` (with fullgraph=True it raises an error that explains it)",
        (Way("move", "move it in front of the blocks or behind them: only the blocks must be in one graph"),),
        remedy=False,
    ),
)
