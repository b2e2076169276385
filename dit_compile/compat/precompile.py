"""Keeping compiled code for another process. Where a name is missing (``can_record``), nothing is kept."""

from __future__ import annotations

import pickle
import re
import sys
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule

# Guards that name an object of this process, which the next one cannot have: torch drops them, too.
_BY_IDENTITY = {
    "CLASS_MATCH", "CLOSURE_MATCH", "DICT_VERSION", "FUNCTION_MATCH", "ID_MATCH", "MODULE_MATCH", "NN_MODULE",
    "WEAKREF_ALIVE",
}  # fmt: skip
# torch 2.13 saves a function without these, and fails when it builds their guards again.
_OF_FUNCTIONS = ("__defaults__", "__kwdefaults__", "__closure__", "__code__", "cell_contents")


def can_record() -> bool:
    """Whether this torch can keep what Dynamo compiles (``torch._dynamo.package``, usable since 2.13)."""
    try:
        from torch._dynamo.package import CompilePackage
        from torch._functorch._aot_autograd.aot_autograd_result import deserialize_bundled_cache_entry
    except ImportError:
        return False
    return callable(CompilePackage) and callable(deserialize_bundled_cache_entry)


def is_portable(guard: Any) -> bool:
    """Whether ``guard``, one of those that Dynamo's ``guard_filter_fn`` is given, can be built in another process."""
    kinds = {guard.guard_type, *guard.derived_guard_types}
    return not kinds & _BY_IDENTITY and not any(word in guard.name for word in _OF_FUNCTIONS)


def guarded_key_orders() -> set[Any]:
    """While a backend is called: where the dictionaries are whose order Dynamo guards. The set is Dynamo's own.

    Guards that are dropped leave them behind (``OutputGraph.guard_on_key_order``, since 2.3), and torch 2.13 looks for
    all of them where it loads guards.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    found: set[Any] = getattr(InstructionTranslator.current_tx().output, "guard_on_key_order", set())
    return found


def failed_to_record(error: BaseException | None) -> bool:
    """Whether ``error`` was raised where Dynamo notes what it has compiled, not where it compiles."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            code = frame.f_code
            if code.co_filename.endswith(("package.py", "pickle.py")) or code.co_name == "serialize_guards":
                return True
        if isinstance(error, AssertionError) and "guards_state" in str(error):  # serialize_guards gave up, with a log
            return True
        error = error.__cause__
    return False


def new_package(function: Callable[..., Any], entry: Any = None) -> Any:
    """What Dynamo notes its code and guards in (``CompilePackage``, since 2.8); ``entry`` is what another one held.

    Raises RuntimeError where ``entry`` was made from other sources, or by another torch.
    """
    from torch._dynamo.package import CompilePackage

    return CompilePackage(function, entry)


def package_entry(package: Any) -> Any:
    """The picklable content of ``package``."""
    return package.cache_entry()


def graphs_of(entry: Any) -> set[str]:
    """The names of the graphs in ``entry`` that are used by code which will be installed."""
    return {name for code in entry.codes if not code.bypassed for name in code.backend_ids}


def functions_elsewhere(entry: Any) -> list[str]:
    """Functions in ``entry`` of other Python modules than the compiled one: what follows a graph break."""
    home = entry.codes[0].python_module
    return [code.python_code.co_name for code in entry.codes if code.python_module != home and code.backend_ids]


def leave_out(entry: Any, names: Collection[str]) -> None:
    """Marks what of ``entry`` is not to be installed: functions with other graphs than ``names``, and those elsewhere.

    Dynamo would install these in code that other models share, and run it for them, whatever their backend.
    """
    home = entry.codes[0].python_module
    for code in entry.codes:
        if code.python_module != home or not set(code.backend_ids) <= set(names):
            code.bypassed = True


def move_entry(entry: Any, module: str) -> None:
    """Lets ``entry`` install its code in the Python module ``module``, which holds the function that is compiled."""
    home = entry.codes[0].python_module
    for code in entry.codes:
        if code.python_module == home:
            code.python_module = module


def install_entry(
    package: Any, function: types.FunctionType, backends: Mapping[str, Callable[[], Callable[..., Any]]]
) -> None:
    """Lets Dynamo run for ``function`` what ``package`` was made with; ``backends`` make the graphs by name.

    Names that Dynamo numbers in one process (``__builtins_dict___0``) come with it. torch 2.13 would give them again,
    and fail where it finds them taken: its counter (``unique_id``, since 2.0) is moved past them.
    """
    from torch._dynamo.bytecode_transformation import unique_id

    package.install({name: _Backend(make) for name, make in backends.items()})
    taken = [int(found[1]) for name in function.__globals__ if (found := re.fullmatch(r"__\w+?_(\d+)", name))]
    while int(unique_id("").rpartition("_")[2]) < max(taken, default=0):
        pass


class _Backend:
    """What ``CompilePackage.install`` asks for a graph."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self.after_deserialization = make


def function_in_new_module(function: types.FunctionType, name: str) -> types.FunctionType:
    """A copy of ``function`` in a module of its own that is called ``name``: Dynamo installs compiled code among the
    globals, under names that are unique in one process only."""
    module = types.ModuleType(name)
    scope = {**function.__globals__, "__name__": name}
    for key in ("__file__", "__spec__", "__cached__"):  # by which others would take it for the module it is a copy of
        scope.pop(key, None)
    module.__dict__.update(scope)
    sys.modules[name] = module
    code = function.__code__.replace(co_name=function.__name__)
    return types.FunctionType(code, module.__dict__, function.__name__)


def recorded_id(gm: GraphModule) -> str | None:
    """Dynamo's name for ``gm`` where it keeps what is compiled (``_backend_id``, since 2.8), else None."""
    return getattr(gm, "_backend_id", None)


@contextmanager
def portable_pieces() -> Iterator[None]:
    """What is compiled inside can be serialized (``torch._functorch.config.bundled_autograd_cache``, since 2.8)."""
    import torch._functorch.config

    with torch._functorch.config.patch(bundled_autograd_cache=True):
        yield


def serialized(code: Any) -> bytes | None:
    """What ``compile_fx`` has returned inside ``portable_pieces``, pickled (an attribute ``serialize``, since 2.8).

    None where torch could not keep it: it has no form for some graphs, and names the reason in its log."""
    serialize = getattr(code, "serialize", None)
    if serialize is None:
        return None
    with portable_pieces():
        return pickle.dumps(serialize())


def deserialized(content: bytes) -> Callable[..., Any]:
    """The code that ``serialized`` was given (``deserialize_bundled_cache_entry``, since 2.9)."""
    from torch._functorch._aot_autograd.aot_autograd_result import deserialize_bundled_cache_entry

    return deserialize_bundled_cache_entry(pickle.loads(content))


def triton_version() -> str:
    """The version of Triton, or "none" (``torch.utils._triton``, since 2.1)."""
    from torch.utils._triton import get_triton_version

    found: Sequence[int] = get_triton_version((0, 0))
    return ".".join(map(str, found)) if any(found) else "none"
