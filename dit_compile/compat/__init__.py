"""Every private name of torch that this project uses: what for, since when it exists, and what happens without it.

Run with torch 2.13; the names were looked up in 2.11 and 2.15 as well. A name that is missing in a later torch is
looked for here and nowhere else. Features are detected, versions never compared. Slow imports
stand in the functions.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import free_symbols, free_unbacked_symbols
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "HigherOrderOperator", "OpOverload", "OpOverloadPacket", "TorchDispatchMode", "free_symbols",
    "free_unbacked_symbols", "tree_leaves",
]  # fmt: skip

# --- Dynamo: what it leaves on the graph, and what it says about itself


def counters() -> dict[str, Counter[str]]:
    """Dynamo's counters (``torch._dynamo.utils.counters``, since 2.0): the usual place for counts that tests read."""
    return torch._dynamo.utils.counters


def graph_break_reasons() -> list[Any]:
    """Why Dynamo broke graphs in this process (``torch._dynamo.output_graph``, since 2.0).

    Empty where the name is missing: a refusal then names no source line.
    """
    import torch._dynamo.output_graph as output_graph

    return getattr(output_graph, "graph_break_reasons", [])


def compilations() -> list[Any]:
    """What Dynamo notes of each function that it compiled, or gave up on (``get_compilation_metrics``, since 2.1).

    Empty where the name is missing: a graph is then not known to be a part of a model.
    """
    notes = getattr(torch._dynamo.utils, "get_compilation_metrics", None)
    return list(notes()) if notes is not None else []


def backends_in_use() -> list[Any]:
    """The backends of all functions compiled in this process (``torch._dynamo.eval_frame.cached_backends``, since 2.1).

    Empty where the name is missing: nothing is then said of a model that Dynamo made no graph of.
    """
    from torch._dynamo import eval_frame

    return list(getattr(eval_frame, "cached_backends", {}).values())


def has_dynamo_setting(name: str) -> bool:
    """Whether ``torch._dynamo.config`` has a setting of this name, so that it can be advised."""
    return hasattr(torch._dynamo.config, name)


def dynamo_control_flow() -> tuple[type[BaseException], ...]:
    """Exceptions by which Dynamo and AOTAutograd steer a compilation (restart, skip the frame). They are not errors
    and must pass through (``torch._dynamo.exc``, since 2.0). Inductor's own errors are no part of them."""
    from torch._dynamo import exc

    names = ("RestartAnalysis", "SkipFrame")
    return tuple(getattr(exc, name) for name in names if hasattr(exc, name))


@dataclass(frozen=True)
class Compilation:
    """Which compilation of a function this is (from 1), and how many torch allows (None: not known).

    ``function`` is the number that Dynamo gives the function.
    """

    function: int
    number: int
    limit: int | None


def current_compilation() -> Compilation | None:
    """The compilation that the backend is called for; None outside of Dynamo.

    ``CompileContext.current_compile_id()`` exists since 2.1, ``torch._dynamo.config.recompile_limit`` under this name
    since 2.6. Without them nothing is said about the limit.
    """
    context = getattr(torch._guards, "CompileContext", None)
    known = context.current_compile_id() if context is not None else None
    function, number = getattr(known, "frame_id", None), getattr(known, "frame_compile_id", None)
    if not isinstance(function, int) or not isinstance(number, int):
        return None
    return Compilation(function, number + 1, getattr(torch._dynamo.config, "recompile_limit", None))


def follows_graph_break() -> bool | None:
    """Whether the backend is called for the rest of a function, after a graph break; None outside of Dynamo.

    ``InstructionTranslator.current_tx`` exists since 2.1, the names of resumed functions are those of
    ``torch._dynamo.resume_execution``. Without them the parts of a broken model do not know of each other.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        name = InstructionTranslator.current_tx().f_code.co_name
    except AttributeError:
        return None
    return re.fullmatch(r"torch_dynamo_resume_in_.+_at_\d+", name) is not None


def python_numbers() -> dict[str, float]:
    """Arguments of the function being compiled that are Python numbers, by name; also those in its ``**kwargs``.

    Dynamo makes a constant of an integer that it has seen with one value only, so the graph does not show it.
    ``InstructionTranslator.current_tx`` exists since 2.1; without it such an argument is not known.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    if follows_graph_break() is not False:  # what follows a graph break has no arguments, but local variables
        return {}
    arguments = InstructionTranslator.current_tx().f_locals
    named = {key: value for group in arguments.values() if isinstance(group, dict) for key, value in group.items()}
    numbers = {**named, **arguments}.items()
    return {
        name: float(value)
        for name, value in numbers
        if isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool)
    }


class _Everything(set[str]):
    """A set that has every name in it."""

    def __contains__(self, name: object) -> bool:
        return True


@contextmanager
def numbers_are_operands() -> Iterator[None]:
    """Keeps AOTAutograd from making constants of Python numbers that the pieces take as tensors.

    It looks for every such number of the whole model in the graph that it compiles, and restarts Dynamo with a constant
    where it finds none (``torch._dynamo.symbolic_convert.TensorifyState``, since 2.6). A number that is said to be
    constant already is left alone. Without the name every value of a number compiles a graph, as it did before.
    """
    from torch._dynamo import symbolic_convert

    state = getattr(symbolic_convert, "TensorifyState", None)
    if state is None:
        yield
        return
    with patch.object(state, "force_specializations", _Everything()):
        yield


def copy_dynamo_source(new: Node, old: Node) -> None:
    """Dynamo's description of where an input comes from (``Node._dynamo_source``, since 2.5), read by AOTAutograd.

    It is an attribute, not metadata, so copying a node loses it. Without it weights count as inputs that change.
    """
    new._dynamo_source = getattr(old, "_dynamo_source", None) if old.op == "placeholder" else None


def copy_dynamo_notes(new: GraphModule, old: GraphModule) -> None:
    """The same for a module: ``GraphModule._param_name_to_source`` (since 2.0)."""
    if hasattr(old, "_param_name_to_source"):
        new._param_name_to_source = old._param_name_to_source


def source_name(node: Node) -> str:
    """Dynamo's expression for an input of its graph (``Node._dynamo_source``, since 2.5); empty where not known."""
    return str(getattr(getattr(node, "_dynamo_source", None), "name", ""))


def is_usage_log(node: Node) -> bool:
    """Whether ``node`` only counts the use of an API (``torch._C._log_api_usage_once``, since 1.5)."""
    return node.target is torch._C._log_api_usage_once


def is_checkpoint(node: Node) -> bool:
    """Whether ``node`` is a gradient checkpoint (``tag_activation_checkpoint``, since 2.1)."""
    return node.target is torch.ops.higher_order.tag_activation_checkpoint


def is_region(node: Node) -> bool:
    """Whether ``node`` calls a region (``invoke_subgraph``, since 2.6, with the region's name as second argument)."""
    return node.target is getattr(torch.ops.higher_order, "invoke_subgraph", None)


def region_marker() -> Callable[..., Any] | None:
    """Marks a function of which Dynamo reuses the trace (``torch.compiler.nested_compile_region``).

    Traces are reused since 2.13, which has ``max_reuse_entries``: more kinds of one function raise an error. None in
    releases before: every call would be traced.
    """
    mark = getattr(torch.compiler, "nested_compile_region", None)
    if mark is None or "max_reuse_entries" not in inspect.signature(mark).parameters:
        return None
    return functools.partial(mark, max_reuse_entries=1 << 20)


def is_compiled_module(module: object) -> bool:
    """Whether ``module`` is what ``torch.compile(module)`` returns (``torch._dynamo.OptimizedModule``, since 2.0)."""
    return isinstance(module, torch._dynamo.OptimizedModule)


# --- tensors


def storage_id(tensor: Tensor) -> int | None:
    """Names the memory of ``tensor``, fake ones included (``UntypedStorage._cdata``, since 1.13).

    None where there is no storage: nothing is then known about what shares its memory.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each has been written into (``Tensor._version``, since 0.4); -1 where it is not counted."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


# --- AOTAutograd: what a graph does besides returning values


@dataclass(frozen=True)
class FunctionalMetadata:
    """What AOTAutograd finds when it makes a graph functional.

    ``written`` are the numbers of the inputs that are written into, ``aliases`` those of the outputs that share memory
    with an input, ``tokens`` the kinds of ordered side effects (printing, for example).
    """

    written: tuple[int, ...]
    aliases: tuple[int, ...]
    tokens: tuple[str, ...]


def functional_metadata(
    gm: GraphModule, args: Sequence[Any], observer: TorchDispatchMode, *, body: bool = False
) -> FunctionalMetadata:
    """Runs ``gm`` on fake ``args`` as AOTAutograd does before it compiles; ``observer`` sees every operator.

    ``body``: it is the sub-graph of a higher-order operator.

    ``run_functionalized_fw_and_collect_metadata`` exists since 2.1 in one of two places; ``flat_args_descs`` is an
    argument since 2.9. Without it the effects of a piece are unknown, and the graph is refused.
    """
    from torch._functorch._aot_autograd import collect_metadata_analysis as analysis

    def run(*values: Any) -> Any:
        with _tensors_as_indices() if body else nullcontext(), observer:
            return tuple(tree_leaves(Interpreter(gm).run(*values)))

    collect = analysis.run_functionalized_fw_and_collect_metadata
    given: dict[str, Any] = {}
    if "flat_args_descs" in inspect.signature(collect).parameters:
        from torch._functorch._aot_autograd.descriptors import PlainAOTInput

        given["flat_args_descs"] = [PlainAOTInput(i) for i in range(len(args))]
    with _fake_mode(args), enable_python_dispatcher():  # operators without a meta kernel for symbolic sizes
        found = collect(run, keep_input_mutations=True, **given)(*args)
    return FunctionalMetadata(
        tuple(i for i, info in enumerate(found.input_info) if info.mutates_data or info.mutates_metadata),
        tuple(i for i, info in enumerate(found.output_info) if info.output_type.name in ("alias_of_input", "is_input")),
        tuple(map(str, found.tokens)),
    )


def _tensors_as_indices() -> Any:
    """Lets ``bias[q, k]`` take tensors of shape () as they are, not their values: the way in which Dynamo traces the
    functions that FlexAttention takes (``TransformGetItemToIndex``, since 2.5)."""
    try:
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
    except ImportError:
        return nullcontext()
    return TransformGetItemToIndex()


def _fake_mode(args: Iterable[Any]) -> Any:
    """The mode that fake ``args`` belong to (``maybe_get_fake_mode``, since 2.1), else a new one."""
    from torch._subclasses.fake_tensor import FakeTensorMode, maybe_get_fake_mode

    modes = (maybe_get_fake_mode(arg) for arg in args if isinstance(arg, Tensor))
    return next((mode for mode in modes if mode is not None), None) or FakeTensorMode()


def triton_call(node: Node) -> tuple[Any, ...] | None:
    """(kernel, constant arguments) of a call of a user's Triton kernel; None for other nodes.

    Dynamo writes numbers of ``kernel_side_table`` (since 2.1) into the graph, a new one for every call. Without the
    table equal kernels count as different.
    """
    if not isinstance(node.target, HigherOrderOperator) or "kernel_idx" not in node.kwargs:
        return None
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    kernel: Any = node.kwargs["kernel_idx"]
    constants: Any = node.kwargs.get("constant_args_idx")
    return kernel_side_table.get_kernel(kernel), kernel_side_table.get_constant_args(constants)


# --- Inductor


def fresh_inductor_cache() -> Any:
    """A context manager that gives Inductor an empty folder for its cache (``fresh_cache``, since 2.8, before that
    ``fresh_inductor_cache``)."""
    from torch._inductor import utils

    return (getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache)()


def mode_options(mode: str) -> dict[str, Any]:
    """What ``torch.compile(mode=...)`` stands for (``torch._inductor.list_mode_options``, since 2.0)."""
    return dict(torch._inductor.list_mode_options(mode))


def inductor_settings() -> Mapping[str, Any]:
    """Inductor's settings (``torch._inductor.config.get_config_copy``, since 2.1)."""
    import torch._inductor.config

    return torch._inductor.config.get_config_copy()


def compile_with_inductor(gm: GraphModule, examples: Sequence[Any], patches: dict[str, Any] | None) -> Any:
    """``compile_fx``, the door that out-of-tree backends use (since 2.0)."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(gm, examples, config_patches=patches or None)


def without_dynamo_wrapper(code: Any) -> Any:
    """``compile_fx`` keeps Dynamo out of its code by a wrapper (``innermost_fn``, since 2.1 undoes it).

    Dynamo calls us with itself switched off, and the wrapper takes longer than a small kernel. Without the name the
    wrapper stays.
    """
    from torch._dynamo import eval_frame

    unwrap = getattr(eval_frame, "innermost_fn", None)
    return unwrap(code) if unwrap is not None else code


def compile_with_aot_eager(gm: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """Dynamo's backend ``aot_eager`` (since 2.0)."""
    from torch._dynamo.backends.debugging import aot_eager

    return aot_eager(gm, list(examples))


# --- logging and graphs


def trace_artifact(name: str, text: str) -> None:
    """Puts ``text`` beside Dynamo's own artifacts where TORCH_TRACE is set (``trace_structured``, since 2.3)."""
    from torch._logging._internal import trace_structured

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=lambda: text,
    )


def owning_module(graph: Graph) -> Any:
    """The module whose attributes a graph's ``get_attr`` nodes name (``Graph.owning_module``, since 1.8)."""
    return graph.owning_module
