"""The causes of graph breaks that are known, and the ways out that were tried.

Each way out was tried: tests/backend/test_graph_breaks.py breaks a graph, reads the message, applies the way out and
finds the blocks cached.
"""

from __future__ import annotations

import builtins
import logging
import re
import warnings
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..compat import has_dynamo_setting

# The settings of Dynamo that dit_compile.compile found for the model that is being compiled, as text; None where
# torch.compile compiles it, which finds none.
found_settings: ContextVar[tuple[str, ...] | None] = ContextVar("found_settings", default=None)


@dataclass(frozen=True)
class Way:
    """Something that was tried and helped. Not advised where ``torch._dynamo.config`` has no ``switch``; to ``compile``
    the model with dit_compile.compile is not advised where that was done."""

    name: str
    text: str
    switch: str = ""
    compile: bool = False

    @property
    def advised(self) -> bool:
        if self.compile and found_settings.get() is not None:
            return False
        return not self.switch or has_dynamo_setting(self.switch)


@dataclass(frozen=True)
class Kind:
    """A cause of graph breaks. It is recognised by Dynamo's ``text``, by the ``file`` of a function that was being
    traced and by the source ``line``: each pattern that is given must be found.

    ``cause`` and ways may name the function that Dynamo speaks of as ``{function}``. Without a ``remedy`` nothing keeps
    such code in the graph, and the ways are what to do instead. A cause that depends on ``values`` of tensors is there
    at every call.
    """

    name: str
    cause: str
    ways: tuple[Way, ...]
    text: str = ""
    file: str = ""
    line: str = ""
    remedy: bool = True
    values: bool = False

    def matches(self, text: str, files: Iterable[str], line: str) -> bool:
        return (
            re.search(self.text, text) is not None
            and any(re.search(self.file, file) for file in files)
            and re.search(self.line, line) is not None
        )

    def setting(self, function: str) -> tuple[str, Any] | None:
        """Name and value of the setting of ``torch._dynamo.config`` with which Dynamo goes on, None if there is none;
        a frozenset is to be added to what is set. ``function`` is the one that Dynamo speaks of."""
        name = next((way.switch for way in self.ways if way.switch and has_dynamo_setting(way.switch)), None)
        if name != _IGNORED:
            return (name, True) if name is not None else None
        ignored = _LOGGING.get(self.name) or getattr(logging.Logger, function, None)
        return (name, frozenset([ignored])) if ignored is not None else None


_IGNORED = "ignore_logging_functions"
_IGNORE = f"torch._dynamo.config.{_IGNORED}.add"
_LOGGING = {"print": builtins.print, "warnings": warnings.warn}


def _compile(switch: str) -> Way:
    return Way("compile", "dit_compile.compile(model), which sets what the model needs", switch, compile=True)


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
            _compile(_IGNORED),
            Way("remove", "remove the call"),
            Way("ignore", f"{_IGNORE}(print), after which compiled code prints nothing", _IGNORED),
        ),
        text=r"builtin operator `print`",
    ),
    Kind(
        "logging",
        "a logger is called",
        (
            _compile(_IGNORED),
            Way("remove", "remove the call"),
            Way(
                "ignore",
                f"{_IGNORE}(logging.Logger.{{function}}), after which compiled code does not log it",
                _IGNORED,
            ),
        ),
        text=r"logging\.Logger method",
    ),
    Kind(
        "warnings",
        "warnings.warn is called",
        (
            _compile(_IGNORED),
            Way("remove", "remove the call"),
            Way(
                "ignore",
                f"{_IGNORE}(warnings.warn), after which compiled code does not warn",
                _IGNORED,
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
            _compile("capture_dynamic_output_shape_ops"),
            Way(
                "switch",
                "torch._dynamo.config.capture_dynamic_output_shape_ops = True",
                "capture_dynamic_output_shape_ops",
            ),
            Way("fullgraph", "fullgraph=True, which raises an error if the size cannot be traced"),
        ),
        text=r"^Dynamic shape operator",
        values=True,
    ),
    Kind(
        "branch",
        "a branch depends on the values of a tensor",
        _BRANCH,
        text=r"^(Data-dependent (branching|assertion)|generic_jump)|data-dependent expression",
        values=True,
    ),
    Kind(
        "branch on a number",
        "a branch depends on a number that is read from a tensor",
        _BRANCH,
        text=r"Tensor\.item\(\)|_local_scalar_dense",
        line=r"\b(if|while|assert|and|or|not)\b",
        values=True,
    ),
    Kind(
        "number",
        "a number is read from a tensor (.item(), .tolist(), int(), float())",
        (
            _compile("capture_scalar_outputs"),
            Way(
                "switch",
                "if it is an integer, torch._dynamo.config.capture_scalar_outputs = True",
                "capture_scalar_outputs",
            ),
            Way("fullgraph", "if it is an integer, fullgraph=True, which raises an error if it cannot be traced"),
            Way("tensor", "if it is a float, compute with the tensor instead"),
        ),
        text=r"Tensor\.item\(\)|Tensor\.tolist\(\)|_local_scalar_dense",
        values=True,
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
