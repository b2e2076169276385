"""What pipelines of diffusers announce: the name of each denoising call, and where a run begins and ends.

About fifty pipelines wrap their calls in ``with transformer.cache_context("cond"):`` for the step caches that diffusers
itself has (a method of ``CacheMixin``, which two thirds of its transformers have). All pipelines end with
``self.maybe_free_model_hooks()`` (a method of ``DiffusionPipeline``), modular ones with
``transformer._reset_stateful_cache()`` (``CacheMixin``). A run that ends with an exception does not get there: the next
one may be at the same time, or at a later one, and nothing but ``self.progress_bar()`` (``DiffusionPipeline``), with
which every denoising loop begins, tells that it is not the same run. The four methods are wrapped once per process, in
the class: nothing is put on a model of the user's, so it is pickled, copied and saved as before, and a model is heard
from its first call on.
"""

from __future__ import annotations

import contextvars
import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_WRAPPED = "_dit_cache_wrapped"
_PIPELINES = "diffusers.pipelines.pipeline_utils"


@dataclass(frozen=True)
class Announced:
    """The denoising call under way: of which model, and its name."""

    model: weakref.ref[torch.nn.Module]
    name: str


@dataclass(frozen=True)
class Run:
    """A denoising loop of a pipeline with these models. Its progress bar lives as long as the loop does, also where it
    ends with an exception."""

    models: tuple[weakref.ref[torch.nn.Module], ...]
    bar: weakref.ref[Any]

    def alive(self) -> list[torch.nn.Module]:
        return [model for reference in self.models if (model := reference()) is not None]


# In a context variable, because threads may call one model at the same time, each with a name of its own.
_announced: contextvars.ContextVar[Announced | None] = contextvars.ContextVar("dit_cache_announced", default=None)
_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar("dit_cache_run", default=None)
_listeners: list[Callable[[torch.nn.Module, Run | None], None]] = []


def announced() -> Announced | None:
    """What the pipeline has announced of the call under way; None where it announces nothing."""
    return _announced.get()


def run_under_way() -> Run | None:
    """The run of a pipeline whose denoising loop is under way in this context."""
    run = _run.get()
    return run if run is not None and run.bar() is not None else None


def listen(on_bound: Callable[[torch.nn.Module, Run | None], None]) -> None:
    """Wraps the methods once diffusers is loaded; ``on_bound(model, run)`` is called before the first step of each run
    of a pipeline, and where a run ends, then with None.

    Costs a dictionary lookup where there is nothing left to do, so it may be called before every compilation.
    """
    if on_bound not in _listeners:
        _listeners.append(on_bound)
    for module, cls, name, wrap in _METHODS:
        owner = getattr(sys.modules.get(module), cls, None)
        method = getattr(owner, name, None)
        if method is not None and not hasattr(method, _WRAPPED):
            wrapped = wrap(method)
            setattr(wrapped, _WRAPPED, True)
            setattr(owner, name, wrapped)


def _named(method: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    @functools.wraps(method)
    def cache_context(model: torch.nn.Module, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        before = _announced.get()
        with method(model, name, *args, **kwargs):
            _announced.set(Announced(weakref.ref(model), name))
            try:
                yield
            finally:
                _announced.set(before)  # not by its token: a generator may be resumed in another context

    return cache_context


def _ending(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def reset_stateful_cache(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = method(model, *args, **kwargs)
        _tell([model], None)
        return result

    return reset_stateful_cache


def _ending_run(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def maybe_free_model_hooks(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        models = _models(pipeline)
        result = method(pipeline, *args, **kwargs)
        _run.set(None)
        _tell(models, None)
        return result

    return maybe_free_model_hooks


def _beginning_run(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def progress_bar(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        bar, models = method(pipeline, *args, **kwargs), _models(pipeline)
        run = Run(tuple(map(weakref.ref, models)), weakref.ref(bar))
        _run.set(run)
        _tell(models, run)
        return bar

    return progress_bar


def _models(pipeline: Any) -> list[torch.nn.Module]:
    return [part for part in vars(pipeline).values() if isinstance(part, torch.nn.Module)]


def _tell(models: Iterable[torch.nn.Module], run: Run | None) -> None:
    for model in models:
        for on_bound in _listeners:
            on_bound(model, run)


_METHODS: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (
    ("diffusers.models.cache_utils", "CacheMixin", "cache_context", _named),
    ("diffusers.models.cache_utils", "CacheMixin", "_reset_stateful_cache", _ending),
    (_PIPELINES, "DiffusionPipeline", "maybe_free_model_hooks", _ending_run),
    (_PIPELINES, "DiffusionPipeline", "progress_bar", _beginning_run),
)
