"""The model, compiled for the time of tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..entry.compile import compile, transformers_of
from ..entry.regions import unmark
from ..entry.target import Target


@contextmanager
def compiled_for_tuning(model: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """Compiles ``model`` anew: with the settings that ``dit_compile.compile`` was given for it, if it was, and
    ``settings``. Afterwards it is as it was."""
    transformers = transformers_of(model)
    before = [transformer._compiled_call_impl for transformer in transformers]
    try:
        for transformer, known in zip(transformers, before, strict=True):
            given = dict(known.options) if isinstance(known, Target) else {}
            for name in ("plan", "policy") if given.get("policy") == "plan" else ("plan",):
                given.pop(name, None)
            mode = given.pop("mode", None)
            compile(transformer, mode=mode, options={**given, **settings})
        yield
    finally:
        for transformer, known in zip(transformers, before, strict=True):
            transformer._compiled_call_impl = known
            if not isinstance(known, Target):
                unmark(transformer)
