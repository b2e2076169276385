"""Finds the settings of Dynamo that a model needs to be traced into one graph, and sets them for this model only.

Dynamo ends a graph where it cannot go on, and a broken model may have its blocks in several graphs. Many causes have a
setting of ``torch._dynamo.config`` with which Dynamo does go on (``Break.setting``). ``Switches`` tries in this order
and stays with the first that succeeds:

1. A graph break is an error, raised before anything has run and before the backend was called. If its cause has a
   setting that is not set yet, set it and begin again.
2. Unless the cause depends on the values of tensors: run the call without compilation, and begin again with the next
   call. Some models build tables at their first call by code that Dynamo does not trace.
3. Allow graph breaks, without settings, as ``torch.compile`` does. They are harmless if all blocks are in one graph.
4. If no graph is cached: allow graph breaks and set what the causes of all of them ask for, with the next call.
5. If still no graph is cached: as 3. What the backend said then is said now.

A model that is traced whole at once costs one compilation and nothing else. Settings are entered while Dynamo compiles
(calls with compiled code pay nothing), in the thread that compiles, for the functions of this model. A later
compilation that breaks begins again at 1 with the settings that were found.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from types import CodeType
from typing import Any

from ..compat.compiling import (
    compile_function,
    dynamo_settings,
    errors_are_suppressed,
    forget_compiled,
    graph_break_errors,
    region_errors,
    without_advice,
)
from ..debug.messages import Held, hold
from ..passes.break_kinds import found_settings
from ..passes.graph_breaks import Break, BreaksSince, break_of
from ..runtime.fork import free_in_child

log = logging.getLogger("dit_compile")

Settings = Mapping[str, Any]


class Switches:
    """``function``, compiled with the backend; called like ``function``.

    ``fullgraph`` means that a graph break is an error in the end, as for ``torch.compile``: only step 1 is taken, where
    the settings for numbers and sizes are Dynamo's own with ``fullgraph``. Without ``find`` no setting is looked for
    and only steps 1 and 3 are taken. ``name`` is what messages call the model. ``simplify`` is called with the
    error where no setting helps; it returns whether it has made the model easier to trace. ``around`` is entered for
    each compilation.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        *,
        dynamic: bool | None,
        fullgraph: bool,
        find: bool,
        name: str,
        simplify: Callable[[Exception], bool] = lambda error: False,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        package: Any = None,
    ) -> None:
        self._function, self._find, self._name, self._simplify = function, find, name, simplify
        self._around = around
        self._settings: Settings = {}  # while compiling
        self._proven: Settings = {}  # those with which something was compiled
        self._codes: set[CodeType] = set()
        self._warm = fullgraph or not find
        how = partial(compile_function, function, self._compiling, options=options, dynamic=dynamic, package=package)
        self._whole = how(fullgraph=fullgraph, strict=True)
        self._parts: Callable[[], Callable[..., Any]] = cache(partial(how, fullgraph=False, strict=False))
        self._fullgraph = fullgraph
        self._run = self._whole
        self._rounds = 0  # changes of what is above
        self._lock = free_in_child(threading.RLock())
        self._thread = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rounds = self._rounds
        try:
            return self._run(*args, **kwargs)
        except Exception as error:
            if not self._is_of_compilation(error):
                raise
            failed = error
        with self._lock:
            if self._rounds == rounds:
                return self._search(failed, args, kwargs)
        return self(*args, **kwargs)  # another thread has gone on meanwhile

    @contextmanager
    def _compiling(self, code: CodeType) -> Iterator[None]:
        """What surrounds each compilation."""
        self._codes.add(code)
        token = found_settings.set(tuple(map(_text, self._settings.items())) if self._find else None)
        try:
            advice = without_advice() if self._find else nullcontext()
            with dynamo_settings(self._settings), advice, self._around():
                yield
        except Exception as error:
            self._thread.error = error
            raise
        finally:
            found_settings.reset(token)

    def _is_of_compilation(self, error: Exception) -> bool:
        """Whether ``error`` was raised by a compilation, not by the model that ran."""
        last, self._thread.error = getattr(self._thread, "error", None), None
        return last is error

    def _search(self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Steps 1 to 3."""
        if self._run is not self._whole:
            raise error  # graph breaks are allowed, so it is another one
        causes: list[Break] = []
        while True:
            cut = break_of(error) if isinstance(error, (*graph_break_errors(), *region_errors())) else None
            if self._find and cut is not None and self._add(cut.setting):
                causes.append(cut)
            elif cut is not None and self._may_vanish(error, cut):
                return self._warm_up(cut, args, kwargs)
            elif self._simplify(error):
                self._rounds += 1
            else:
                break
            try:
                result = self._whole(*args, **kwargs)
            except Exception as again:
                if not self._is_of_compilation(again):
                    raise
                error = again
            else:
                self._keep(causes)
                return result
        self._set(self._proven)
        is_break = isinstance(error, (*graph_break_errors(), *region_errors()))
        if self._fullgraph or not (is_break or errors_are_suppressed()):
            raise error
        return self._in_parts(args, kwargs)

    def _may_vanish(self, error: Exception, cut: Break) -> bool:
        return not self._warm and isinstance(error, graph_break_errors()) and not cut.kind.values

    def _warm_up(self, cut: Break, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step 2."""
        self._warm = True
        self._set(self._proven)
        log.info(
            "dit_cache: the first call of %s runs without compilation, in case that %s is not there at the next (%s)",
            self._name, cut.place, cut.cause,
        )  # fmt: skip
        return self._function(*args, **kwargs)

    def _add(self, setting: tuple[str, Any] | None) -> bool:
        """Whether ``setting`` is a new one, which is set now."""
        if setting is None:
            return False
        merged = _merge(self._settings, *setting)
        if merged == self._settings:
            return False
        self._set(merged)
        return True

    def _set(self, settings: Settings) -> None:
        self._settings = settings
        self._rounds += 1

    def _keep(self, causes: list[Break]) -> None:
        self._warm = True
        self._proven = self._settings
        if not causes:
            return
        places = "; ".join(f"{cut.place}: {cut.cause}" for cut in causes)
        log.info("dit_cache: %s is compiled with %s (%s)", self._name, _texts(self._settings), places)

    def _in_parts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step 3. A graph that is cached ends the search."""
        self._run = self._parts()
        self._rounds += 1
        self._codes.clear()
        breaks = BreaksSince()
        with hold() as held:
            result = self._run(*args, **kwargs)
        if self._find and held.refused and not held.cached:
            causes = [cut for cut in breaks if cut.setting is not None]
            more = self._proven
            for cut in causes:
                assert cut.setting is not None
                more = _merge(more, *cut.setting)
            if more != self._proven:
                unique = {cut.key: cut for cut in causes}
                self._run = partial(self._in_parts_with, more, list(unique.values()), held)
                return result
        held.release()
        return result

    def _in_parts_with(self, more: Settings, causes: list[Break], before: Held, *args: Any, **kwargs: Any) -> Any:
        """Steps 4 and 5."""
        with self._lock:
            if self._run is self._parts():  # another thread came first
                return self._run(*args, **kwargs)
            self._run = self._parts()
            self._forget()
            self._set(more)
            with hold() as held:
                result = self._run(*args, **kwargs)
            if held.cached:
                held.release()
                self._keep(causes)
            else:
                self._forget()
                self._set(self._proven)
                before.release()
            return result

    def _forget(self) -> None:
        """Drops what was compiled: Dynamo does not guard its settings."""
        for code in self._codes:
            forget_compiled(code)
        self._codes.clear()


def _merge(settings: Settings, name: str, value: Any) -> Settings:
    old = settings.get(name)
    return {**settings, name: old | value if isinstance(value, frozenset) and old else value}


def _text(setting: tuple[str, Any]) -> str:
    name, value = setting
    if not isinstance(value, frozenset):
        return f"{name} = {value}"
    return f"{name}: {', '.join(sorted(function.__qualname__ for function in value))}"


def _texts(settings: Settings) -> str:
    return ", ".join(f"torch._dynamo.config.{_text(setting)}" for setting in settings.items())
