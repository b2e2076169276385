"""Inductor's code of a graph, without what stands around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Passed(NamedTuple):
    """One call of Inductor's code."""

    args: list[Any]
    outs: Any


class InductorCode:
    """The code of one graph: what ``CompiledFxGraph`` calls with a list of arguments (``current_callable``, since
    2.1)."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def callable(self) -> Callable[[list[Any]], Any]:
        code: Callable[[list[Any]], Any] = self._compiled.current_callable
        return code

    @contextmanager
    def watched(self) -> Iterator[list[Passed]]:
        """Notes the calls that this thread makes."""
        code, thread = self.callable(), threading.get_ident()
        seen: list[Passed] = []

        def watching(args: list[Any]) -> Any:
            if threading.get_ident() != thread:
                return code(args)
            given = list(args)  # the code empties it
            outs = code(args)
            seen.append(Passed(given, outs))
            return outs

        self._compiled.current_callable = watching
        try:
            yield seen
        finally:
            self._compiled.current_callable = code


@contextmanager
def compiled_code() -> Iterator[list[InductorCode]]:
    """Collects the code of the graphs that Inductor compiles meanwhile, or takes from its caches.

    A ``CUDAGraphPolicy`` (``torch._inductor.config.cudagraph_policy``, since 2.13) is shown all of it. Nothing else is
    asked of this one while CUDA graphs are off. Where the name is missing, or the user has a policy, nothing is
    collected.
    """
    import torch._inductor.config as config

    seen: list[InductorCode] = []
    if getattr(config, "cudagraph_policy", "missing") is not None:
        yield seen
        return
    from torch._inductor.cudagraph_utils import CUDAGraphPolicy

    class Witness(CUDAGraphPolicy):
        def wrap_output(self, output_code: Any) -> Any:
            if callable(getattr(output_code, "current_callable", None)):
                seen.append(InductorCode(output_code))
            return output_code

    with config.patch(cudagraph_policy=Witness()):
        yield seen


def autocast_is_on() -> bool:
    """For any device (``torch._C._is_any_autocast_enabled``, since 2.4); True where the name is missing."""
    ask = getattr(torch._C, "_is_any_autocast_enabled", None)
    return ask is None or bool(ask())
