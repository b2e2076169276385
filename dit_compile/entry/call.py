"""The function that Dynamo compiles for a model."""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch

_calls: weakref.WeakKeyDictionary[type, types.FunctionType] = weakref.WeakKeyDictionary()


def call_of(cls: type) -> types.FunctionType:
    """The function that is compiled for models of class ``cls``.

    Each class has code of its own, and Dynamo keeps compiled code by code object: models of one class share what is
    compiled, and recompilations of one class do not count towards the limit of another.
    """
    known = _calls.get(cls)
    if known is None:
        code = _call.__code__.replace(co_name=cls.__name__)
        known = _calls[cls] = types.FunctionType(code, _call.__globals__, cls.__name__)
    return known


def _call(structure: str, model: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    if structure:  # read, so that Dynamo guards it: code is shared by models of equal structure alone
        return model._call_impl(*args, **kwargs)
    raise AssertionError
