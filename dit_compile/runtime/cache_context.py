"""What a diffusers pipeline calls the denoising call that it makes: "cond", "uncond", ...

About fifty pipelines of diffusers wrap their calls in ``with transformer.cache_context("cond"):`` for the step caches
that diffusers itself has. The name reaches every stateful hook in the model's hook registry and nobody else, so a hook
that does nothing but listen is put there. It does not wrap ``forward``: Dynamo sees the same model as before.
A model without a registry is left without one, for models that ask for their ``dtype`` look whether they have it, and
the graph just compiled would be compiled again.
"""

from __future__ import annotations

import contextvars
import gc
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor

_HOOK = "dit_cache"
# In a context variable, because threads may call one model at the same time, each with a name of its own.
_said: contextvars.ContextVar[tuple[int, str | None]] = contextvars.ContextVar("dit_cache_context", default=(0, None))


class ContextName:
    """The name of the call under way, for one model."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener

    def __call__(self) -> str | None:
        speaker, name = _said.get()
        return name if speaker == id(self._listener) else None


def listen(weights: Iterable[Tensor]) -> ContextName | None:
    """Listens to the model that owns ``weights``; None where it is no model of diffusers or was given no name yet.

    The model is looked for among all objects of the process, which takes some milliseconds: once per model.
    """
    mixin = getattr(sys.modules.get("diffusers.models.cache_utils"), "CacheMixin", None)
    if mixin is None:
        return None
    wanted = {id(weight) for weight in weights}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), mixin) and not wanted.isdisjoint(map(id, candidate.parameters())):
            return _attach(candidate)
    return None


def _attach(model: Any) -> ContextName | None:
    """Puts the listener in front of all hooks: a hook that is removed looks for its neighbour behind it."""
    try:
        from diffusers.hooks.hooks import HookFunctionReference

        registry = model._diffusers_hook  # ``cache_context`` has made it, if anything was said
        if _HOOK not in registry.hooks:
            reference = HookFunctionReference()
            reference.forward = model.forward
            registry.hooks[_HOOK] = _listener_class()()
            registry._hook_order.insert(0, _HOOK)
            registry._fn_refs.insert(0, reference)
        return ContextName(registry.hooks[_HOOK].names)
    except (ImportError, AttributeError):  # nothing said, or other hooks than we know: branches are told by inputs
        return None


@cache
def _listener_class() -> type:
    from diffusers.hooks.hooks import BaseState, ModelHook, StateManager

    class Names(StateManager):
        def set_context(self, context: Any) -> None:
            _said.set((id(self), getattr(context, "name", context)))

        def reset(self, *args: Any, **kwargs: Any) -> None:
            _said.set((id(self), None))

    class Listener(ModelHook):
        _is_stateful = True

        def __init__(self) -> None:
            super().__init__()
            self.names = Names(BaseState)

        def reset_state(self, module: Any) -> Any:
            return module

    return Listener
