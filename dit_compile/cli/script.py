"""The user's program for ``dit-compile tune SCRIPT.py:make``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .checks import did_you_mean, fail

FUNCTION = "make"


def split_script(given: str) -> tuple[Path, str]:
    """``SCRIPT.py:make`` as path and name; the name is ``make`` where none is given."""
    path, colon, name = given.rpartition(":")
    if not colon:
        path, name = given, FUNCTION
    if not Path(path).is_file():
        fail(f"there is no script {path}")
    if not name.isidentifier():
        fail(f"expected SCRIPT.py:FUNCTION, got {given}")
    return Path(path), name


def draw_and_model(path: Path, name: str) -> tuple[Callable[..., Any], Any]:
    """What the function ``name`` of the program ``path`` returns. The program's own exceptions pass."""
    make = getattr(_load(path), name, None)
    if not callable(make):
        known = [word for word, value in vars(sys.modules[_module_name(path)]).items() if callable(value)]
        fail(f"{path} has no function {name}{did_you_mean(name, known)}")
    made = make()
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        fail(f"{name}() must return (draw, model), got {_described(made)}")
    draw, model = made
    from ..entry.compile import transformers_of

    if _is_model(draw):
        fail(f"{name}() must return (draw, model) in this order; the first is {_described(draw)}")
    try:
        transformers_of(model)
    except TypeError as error:
        fail(f"the model that {name}() returns: {error}")
    try:
        inspect.signature(draw).bind("a prompt", 0)
    except TypeError as error:
        fail(f"draw, which {name}() returns first, must take (prompt, seed): {error}")
    except ValueError:
        pass  # a callable that does not say what it takes
    return draw, model


def _is_model(value: Any) -> bool:
    return hasattr(value, "parameters") or hasattr(value, "components")


def _module_name(path: Path) -> str:
    return f"_tuned_{path.stem}"


def _load(path: Path) -> ModuleType:
    """Runs the program, which finds modules beside it, as it does when Python runs it."""
    sys.path.insert(0, str(path.resolve().parent))
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        fail(f"{path} is no Python program")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(one).__name__ for one in value)})"
    return type(value).__name__
