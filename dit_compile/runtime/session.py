"""Sessions: a caller's own state, so that requests never see each other's snapshots."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

log = logging.getLogger("dit_compile")

_current: contextvars.ContextVar[Session | None] = contextvars.ContextVar("dit_cache_session", default=None)
_outer: contextvars.ContextVar[tuple[Session | None, ...]] = contextvars.ContextVar("dit_cache_outer", default=())


class SessionInUse(RuntimeError):
    """Two requests use one session, or one name, at the same time."""


DEFAULT = "default"  # the session of calls outside of any session, in the main thread


class Session:
    """State and settings of one caller, entered with ``with``.

    Leaving the outermost ``with`` frees the state, unless ``keep`` was set: then the session can be entered again, step
    by step, also by another thread, until ``close()`` or until the object is gone. One object is one request: its calls
    come one after the other, from whatever thread or task. One open session has the name.
    """

    def __init__(
        self, name: str, overrides: Mapping[str, Any], keep: bool = False, on_close: Callable[[str], None] | None = None
    ) -> None:
        self.name = name
        self.overrides = dict(overrides)
        self._keep = keep
        self._on_close = on_close
        self.settings: dict[int, Any] = {}  # by the number of a graph; see cached_graph.Settings
        self._depth = 0  # how many ``with`` are open, in all threads and tasks
        self._forgotten: weakref.finalize[Any, Session] | None = None

    def __enter__(self) -> Session:
        """Raises SessionInUse where another open session has the name."""
        with _lock:
            holder = _open.get(self.name)
            if holder is not None and holder is not self:
                raise SessionInUse(
                    f"session {self.name!r} is open already: one request, one session. Give each request a name of its "
                    "own; to go on with a session, keep the object that dit_compile.session(..., keep=True) returned"
                )
            _open[self.name] = self
            self._depth += 1
        if self._forgotten is None and self._on_close is not None:
            self._forgotten = weakref.finalize(self, self._on_close, self.name)
            self._forgotten.atexit = False
        _outer.set((*_outer.get(), _current.get()))
        _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = [*_outer.get(), _current.get()]  # by its place, not by a token, which is valid in one context only
        if self in entered:
            del entered[len(entered) - 1 - entered[::-1].index(self)]
            _outer.set(tuple(entered[:-1]))
            _current.set(entered[-1])
        else:  # not the context that it was entered in; there, nothing can be taken back
            log.warning(
                "dit_cache: session %r was entered in one context and left in another, as happens in a generator that "
                "a web framework resumes: calls of the model in between may not have seen it. Enter it around each "
                "step instead: s = dit_compile.session(%r, keep=True), then with s: ..., and s.close() at the end",
                self.name,
                self.name,
            )
        with _lock:
            self._depth -= 1
            outermost = self._depth == 0
        if outermost and not self._keep:
            self.close()

    def close(self) -> None:
        """Ends the session's generations and frees their snapshots; statistics stay."""
        if self._forgotten is not None:
            self._forgotten.detach()
            self._forgotten = None
        if self._on_close is not None:
            self._on_close(self.name)
        with _lock:
            if _open.get(self.name) is self:
                del _open[self.name]


_open: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()  # by name
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]


class _ThreadDefault(threading.local):
    session: Session | None = None


_default = _ThreadDefault()


def current_session(on_close: Callable[[str], None]) -> Session:
    """The session entered last in this context, else the default session of this thread.

    Each thread has a default session of its own, freed when the thread ends, so threads that share a compiled model do
    not share its state.
    """
    session = _current.get()
    if session is not None:
        return session
    if _default.session is None:
        thread = threading.current_thread()
        main = thread is threading.main_thread()
        _default.session = Session(DEFAULT if main else f"{thread.name} ({thread.ident})", {})
        if not main:
            weakref.finalize(_default.session, on_close, _default.session.name)
    return _default.session
