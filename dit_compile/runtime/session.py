"""Sessions: a caller's own state, so that requests never see each other's snapshots."""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ..config import CacheConfig

_current: contextvars.ContextVar[Session | None] = contextvars.ContextVar("dit_cache_session", default=None)


class Session:
    """State and settings of one caller, entered with ``with``.

    Leaving the outermost ``with`` frees the state, unless ``keep`` was set: then the session can be entered again, step
    by step, until ``close()``.
    """

    def __init__(
        self, name: str, overrides: Mapping[str, Any], keep: bool = False, on_close: Callable[[str], None] | None = None
    ) -> None:
        self.name = name
        self.overrides = dict(overrides)
        self._keep = keep
        self._on_close = on_close
        self.configs: dict[
            int, tuple[object, CacheConfig]
        ] = {}  # graph -> (process-wide settings, what they resolve to)
        self._tokens: list[contextvars.Token[Session | None]] = []

    def __enter__(self) -> Session:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())
        if not self._tokens and not self._keep:
            self.close()

    def close(self) -> None:
        """Ends the session's generations and frees their snapshots; statistics stay."""
        if self._on_close is not None:
            self._on_close(self.name)


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
        _default.session = Session("default" if main else f"{thread.name} ({thread.ident})", {})
        if not main:
            weakref.finalize(_default.session, on_close, _default.session.name)
    return _default.session
