"""A model that ``dit_compile.compile`` has compiled in place, and the call of it."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .regions import mark

_calls: dict[type, Callable[..., Any]] = {}


class Target:
    """One module, compiled with ``options``. ``install`` puts it where ``nn.Module.compile`` puts compiled code."""

    def __init__(
        self, model: torch.nn.Module, options: Mapping[str, Any], *, dynamic: bool | None, fullgraph: bool
    ) -> None:
        self._ready = False
        self._model = weakref.ref(model)  # the model holds the target
        self._compiled = torch.compile(
            call_of(type(model)), backend="dit_cache", options=dict(options), dynamic=dynamic, fullgraph=fullgraph
        )

    def install(self) -> None:
        model = self._model()
        assert model is not None
        model._compiled_call_impl = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._ready:
            self._prepare()
        return self._compiled(self._model(), *args, **kwargs)

    def _prepare(self) -> None:
        model = self._model()
        assert model is not None
        mark(model)
        self._ready = True


def call_of(cls: type) -> Callable[..., Any]:
    """The function that is compiled for models of class ``cls``.

    Each class has code of its own, and Dynamo keeps compiled code by code object: models of one class share what is
    compiled, and recompilations of one class do not count towards the limit of another.
    """
    known = _calls.get(cls)
    if known is None:
        code = _call.__code__.replace(co_name=cls.__name__)
        known = _calls[cls] = types.FunctionType(code, _call.__globals__, cls.__name__)
    return known


def _call(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return model._call_impl(*args, **kwargs)
