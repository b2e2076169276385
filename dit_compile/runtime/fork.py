"""What a forked child must do anew.

It has none of the parent's other threads: a lock that one of them held is never released, and what it was about to
finish stays half-done.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_told: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def free_in_child(lock: _T) -> _T:
    """``lock``, a Lock or RLock, which will be free in a forked child."""
    _locks.add(lock)
    return lock


def tell_in_child(which: _T, begin: Callable[[_T], None]) -> None:
    """``begin(which)`` will be called in a forked child, as long as ``which`` lives."""
    _told[which] = begin


def _in_child() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()
    for which, begin in list(_told.items()):
        begin(which)


if hasattr(os, "register_at_fork") and hasattr(threading.Lock(), "_at_fork_reinit"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
