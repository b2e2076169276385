"""What ``torch.compile`` does not offer: attempts that fail at a graph break, and settings for one function only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch

Around = Callable[[CodeType], AbstractContextManager[Any]]


def compile_function(
    function: Callable[..., Any],
    around: Around,
    *,
    options: Mapping[str, Any],
    dynamic: bool | None,
    fullgraph: bool,
    strict: bool,
    package: Any = None,
) -> Callable[..., Any]:
    """``torch.compile(function, backend="dit_cache", ...)`` that enters ``around(code)`` whenever Dynamo compiles.

    Dynamo asks its callback where no compiled code fits; calls for which there is compiled code do not come there and
    pay nothing. ``strict`` makes a graph break an error, raised before anything has run
    (``torch._dynamo.optimize(error_on_graph_break=...)``, since 2.9). Strict and other functions share compiled code.
    ``package`` takes what is compiled (see ``precompile``; ``torch._dynamo.optimize(package=...)``, since 2.8).

    Without one of the names it is ``torch.compile`` itself: no setting is found, nothing else changes.
    """
    context = _context(dict(options), dynamic=dynamic, fullgraph=fullgraph, strict=strict, package=package)
    if not callable(getattr(context, "callback", None)):
        return torch.compile(function, backend="dit_cache", options=dict(options), dynamic=dynamic, fullgraph=fullgraph)
    context.callback = _Callback(context.callback, around)
    compiled: Callable[..., Any] = context(function)
    return compiled


def _context(options: dict[str, Any], *, dynamic: bool | None, fullgraph: bool, strict: bool, package: Any) -> Any:
    """What ``torch.compile`` calls with the function; None where a name is missing."""
    wrapper = getattr(torch, "_TorchCompileWrapper", None)  # since 2.1; compares equal for equal options
    if wrapper is None:
        return None
    more = {name: options.pop(name) for name in ("guard_filter_fn",) if name in options}
    if package is not None:
        more["package"] = package
    try:
        return torch._dynamo.optimize(
            backend=wrapper("dit_cache", None, options, dynamic),
            nopython=fullgraph,
            error_on_graph_break=strict,
            dynamic=dynamic,
            **more,
        )
    except TypeError:
        return None


class _Callback:
    """Dynamo's callback, called for a frame that has no compiled code. Dynamo looks for the backend behind
    ``_torchdynamo_orig_backend``."""

    def __init__(self, callback: Callable[..., Any], around: Around) -> None:
        self._torchdynamo_orig_backend = callback
        self._around = around

    def __call__(self, frame: Any, *args: Any, **kwargs: Any) -> Any:
        with self._around(frame.f_code):
            return self._torchdynamo_orig_backend(frame, *args, **kwargs)


def dynamo_settings(changes: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """``torch._dynamo.config`` with ``changes``, in this thread (``config.patch``, since 2.0); a set is added to."""
    config = torch._dynamo.config
    merged = {
        name: getattr(config, name) | value if isinstance(value, frozenset) else value
        for name, value in changes.items()
    }
    return config.patch(merged)


@contextmanager
def numbers_as_inputs(chosen: Callable[[str], bool]) -> Iterator[None]:
    """Makes inputs of the numbers of which ``chosen`` says so, by Dynamo's expression for them, as Dynamo does itself
    with a number that it has seen with two values (``process_automatic_dynamic`` of ``torch._dynamo.variables.builder``
    and ``torch._dynamo.pgo.auto_dynamic``, since 2.7). Without the names Dynamo learns of each number by itself.
    """
    from torch._dynamo.variables import builder

    decide = getattr(builder, "process_automatic_dynamic", None)
    moving = getattr(getattr(torch._dynamo, "pgo", None), "auto_dynamic", None)
    if decide is None or moving is None:
        yield
        return

    def decided(tx: Any, name: str, entry: Any, **kwargs: Any) -> Any:
        result = decide(tx, name, entry, **kwargs)
        if isinstance(entry.scalar, float) and chosen(name):
            result.scalar = moving
        return result

    with patch.object(builder, "process_automatic_dynamic", decided):
        yield


@contextmanager
def without_advice() -> Iterator[None]:
    """Without Dynamo's warning that advises to set ``capture_scalar_outputs`` (``torch._dynamo.variables.tensor``, 2.1
    on; it is given once in a process)."""
    logger = logging.getLogger("torch._dynamo.variables.tensor")

    def other(record: logging.LogRecord) -> bool:
        return "capture_scalar_outputs" not in str(record.msg)

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def graph_break_errors() -> tuple[type[Exception], ...]:
    """What Dynamo raises for a graph break where that is an error (``torch._dynamo.exc``, since 2.0)."""
    from torch._dynamo import exc

    return tuple(getattr(exc, name) for name in ("Unsupported", "UserError") if hasattr(exc, name))


def errors_are_suppressed() -> bool:
    """Whether the user wants a model to run without compilation where that fails (``suppress_errors``, since 2.0)."""
    return bool(getattr(torch._dynamo.config, "suppress_errors", False))


def region_errors() -> tuple[type[Exception], ...]:
    """The same for a break inside of a region (``UncapturedHigherOrderOpError``, since 2.1), and where regions are
    compared by sizes that depend on the values of a tensor (``GuardOnDataDependentSymNode``, since 2.1)."""
    from torch._dynamo import exc
    from torch.fx.experimental import symbolic_shapes

    places = ((exc, "UncapturedHigherOrderOpError"), (symbolic_shapes, "GuardOnDataDependentSymNode"))
    return tuple(getattr(module, name) for module, name in places if hasattr(module, name))


def forget_compiled(code: CodeType) -> None:
    """Drops what Dynamo keeps for ``code``: what it compiled, or that it gave up (``remove_from_cache``, since 2.0)."""
    from torch._dynamo import eval_frame

    eval_frame.remove_from_cache(code)
