"""The memory cap (``max_bytes``): how many snapshots a region may keep, given what everybody else keeps.

When not everything fits, the number of snapshots per region and branch goes down for all alike, which lowers the order
of the forecast: order 2, order 1, plain reuse. When not even one snapshot each fits, those who come first have one,
and for the others every step is computed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sized
from typing import NamedTuple, Protocol

from .fork import free_in_child


class Share(NamedTuple):
    """Bytes of one region in one branch: ``fixed`` for its probe and samples, ``each`` per snapshot.

    ``wanted`` snapshots are what the forecaster weighs, ``kept`` what there is at present; 0: nothing is held.
    """

    fixed: int
    each: int
    wanted: int
    kept: int = 0

    def nbytes(self, most: int) -> int:
        """With at most ``most`` snapshots."""
        snapshots = min(most, self.wanted)
        return self.fixed + self.each * snapshots if snapshots else 0


class Holder(Protocol):
    """Who holds memory: the slots of one region in one branch."""

    share: Share | None
    emptied: str

    @property
    def ring(self) -> Sized:
        """Its snapshots."""

    def drop(self) -> None: ...


class Budget:
    """What the snapshots and probes of one module hold, over all sessions and branches.

    Nobody's snapshots are dropped but one's own, at a step that computes: a forecast in another session, perhaps in
    another thread, never loses what it is about to read. Whoever holds too much gives it up at the next computed step.
    State that dies, with its session or generation, leaves by itself.
    """

    def __init__(self) -> None:
        self._lock = free_in_child(threading.RLock())
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def grant(self, holder: Holder, share: Share, limit: int | None) -> int:
        """Snapshots that ``holder`` may keep from now on, the one that is about to be taken included.

        Frees everything of ``holder`` when it is none.
        """
        with self._lock:
            granted = share.wanted if limit is None else self._fitting(holder, share, limit)
            kept = min(len(holder.ring) + 1, granted)
            if not granted:
                holder.drop()
                holder.emptied = "memory_cap"  # also where there was nothing to free
            holder.share = share._replace(kept=kept)
            self._holders.add(holder)
        return granted

    def held(self, besides: Holder | None = None) -> int:
        """Bytes held at present."""
        return sum(share.nbytes(share.kept) for share in self._shares(besides))

    def wanted(self) -> int:
        """Bytes that would be held without a limit."""
        return sum(share.nbytes(share.wanted) for share in self._shares())

    def _shares(self, besides: Holder | None = None) -> list[Share]:
        with self._lock:
            return [each.share for each in self._holders if each is not besides and each.share is not None]

    def _fitting(self, holder: Holder, mine: Share, limit: int) -> int:
        everybody = [mine, *self._shares(holder)]
        equal = mine.wanted
        while equal > 1 and sum(share.nbytes(equal) for share in everybody) > limit:
            equal -= 1
        free = limit - self.held(holder) - mine.fixed
        return max(min(equal, free // max(mine.each, 1)), 0)
