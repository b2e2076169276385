"""Sessions: a caller's own state, so that requests never see each other's snapshots."""

from __future__ import annotations

import contextvars
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from .fork import free_in_child, tell_in_child

log = logging.getLogger("dit_compile")

_entered: contextvars.ContextVar[tuple[_Entry, ...]] = contextvars.ContextVar("dit_cache_sessions", default=())
_current: contextvars.ContextVar[Session | None] = contextvars.ContextVar("dit_cache_session", default=None)  # the last


class SessionInUse(RuntimeError):
    """Two requests use one session, or one name, at the same time."""


DEFAULT = "default"  # the session of calls outside of any session, in the main thread


class _Entry:
    """A session as one context has entered it; tasks and threads that inherit the context share it."""

    __slots__ = ("depth", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.depth = 0  # how many ``with`` are open


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
        self.hints = True  # whether it is said that a generation has reused nothing, and why
        self.default = False  # whether it is that of calls outside of any session
        self.caller: _Entry | None = None  # through which the model was called last, while it is open
        self._entries: list[_Entry] = []  # one for each ``with`` that is open, in all threads and tasks
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
            entered = _entered.get()
            entry = next((entry for entry in entered if entry.session is self), None) or _Entry(self)
            entry.depth += 1
            self._entries.append(entry)
        if self._forgotten is None and self._on_close is not None:
            self._forgotten = weakref.finalize(self, self._on_close, self.name)
            self._forgotten.atexit = False
        _enter((*entered, entry))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = list(_entered.get())  # by its place, not by a token, which is valid in one context only
        entry = next((entry for entry in reversed(entered) if entry.session is self), None)
        if entry is not None:
            del entered[len(entered) - 1 - entered[::-1].index(entry)]
            _enter(tuple(entered))
        else:  # not the context that it was entered in; there, nothing can be taken back
            log.warning(
                "dit_cache: session %r was entered in one context and left in another, as happens in a generator that "
                "a web framework resumes: calls of the model in between may not have seen it. Enter it around each "
                "step instead: s = dit_compile.session(%r, keep=True), then with s: ..., and s.close() at the end",
                self.name,
                self.name,
            )
        with _lock:
            entry = entry if entry in self._entries else next(reversed(self._entries), None)
            if entry is not None:  # None: in a forked child, where another thread had entered it
                entry.depth -= 1
                self._entries.remove(entry)
                if not entry.depth and self.caller is entry:
                    self.caller = None
            outermost = not self._entries
        if outermost and not self._keep:
            self.close()

    def called_through(self, entry: _Entry) -> None:
        """Raises SessionInUse where another context, which has not left the session, has called the model before: two
        requests would mix their snapshots."""
        with _lock:
            if self.caller is not None and self.caller is not entry:
                raise SessionInUse(
                    f"session {self.name!r} is in use by another task or thread, which has called the model and has "
                    "not left the session. A session belongs to one request: give each request a name of its own. "
                    "Where the steps of one request run in several tasks or threads, enter the session around each step"
                )
            self.caller = entry

    def close(self) -> None:
        """Ends the session's generations and frees their snapshots; statistics stay."""
        if self._forgotten is not None:
            self._forgotten.detach()
            self._forgotten = None
        if self._on_close is not None:
            self._on_close(self.name)
        with _lock:
            self.caller = None
            if _open.get(self.name) is self:
                del _open[self.name]


_open: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()  # by name
_lock = free_in_child(threading.Lock())


class _ThreadDefault(threading.local):
    session: Session | None = None


_default = _ThreadDefault()
_threads = itertools.count(1)


def _enter(entered: tuple[_Entry, ...]) -> None:
    _entered.set(entered)
    _current.set(entered[-1].session if entered else None)


def _begin_child(opened: weakref.WeakValueDictionary[str, Session]) -> None:
    """Names that the parent's other threads hold are free in a forked child."""
    mine = _entered.get()
    for session in list(opened.values()):
        session._entries = [entry for entry in session._entries if entry in mine]
        session.caller = None
    opened.clear()
    opened.update({entry.session.name: entry.session for entry in mine})


tell_in_child(_lock, lambda lock: _begin_child(_open))


def current_session(on_close: Callable[[str], None]) -> Session:
    """The session of a call of the model: the one entered last in this context, else the default session of this
    thread.

    Each thread has a default session of its own, freed when the thread ends, so threads that share a compiled model do
    not share its state. Raises SessionInUse where another request calls the model through the session.
    """
    entry = _entry_here()
    if entry is None:
        return _default_session(on_close)
    if entry.session.caller is not entry:
        entry.session.called_through(entry)
    return entry.session


def session_here(on_close: Callable[[str], None]) -> Session:
    """The same where the model is not called."""
    entry = _entry_here()
    return _default_session(on_close) if entry is None else entry.session


def _entry_here() -> _Entry | None:
    """The last one that was entered in this context and has not been left, in this context or in another."""
    if _current.get() is None:
        return None
    return next((entry for entry in reversed(_entered.get()) if entry.depth), None)


def _default_session(on_close: Callable[[str], None]) -> Session:
    session = _default.session
    if session is None:
        thread = threading.current_thread()
        main = thread is threading.main_thread()
        # numbered, for the next thread may get the name and the identity of one that has just ended
        session = _default.session = Session(DEFAULT if main else f"{thread.name} ({next(_threads)})", {})
        session.default = True
        if not main:
            weakref.finalize(session, on_close, session.name)
    return session
