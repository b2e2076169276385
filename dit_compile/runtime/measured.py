"""Differences that a step has measured without waiting for them; a later step of the branch reads them, and a lagged
decision carries them on to its own step.

What changes speeds up towards the end of a generation, most of all at the last step. So the change per step, v_s, is
carried on with the growth that it has shown over the last two steps:

    expected_t = d_{t-1} + v_{t-1} * g,    g = min(max(sqrt(v_{t-1} / v_{t-3}), 1), 2)

with d_{t-1} the difference from the last computed step, measured at step t-1 (0 where that was the computed step).
v_s is the largest of d_s - d_{s-1} (where both were measured from one step), d_s per step, and the last difference that
was measured over a single step: where changes go to and fro, the other two say too little. On the bundled model that
gives nearly the decisions of the exact mode, where even growth reuses the last step.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .transfer import Ticket

MOST_GROWTH = 2.0  # per step: one noisy measurement must not end reuse


class Measured(NamedTuple):
    """The probe's two sums at ``step``, and the steps ``since`` the one that it was compared with."""

    sums: Ticket
    step: int
    since: int


class Change(NamedTuple):
    """The same, read: ``diff`` is the relative difference."""

    diff: float
    step: int
    since: int


class Measurements:
    """Those of one region, branch and group of rows: ``pending``, oldest first, and the ``last`` one that was read."""

    __slots__ = ("_paces", "_single", "last", "pending")

    def __init__(self) -> None:
        self.pending: list[Measured] = []
        self.last: Change | None = None
        self._paces: deque[float] = deque(maxlen=3)  # the change per step at the last steps without a gap
        self._single = 0.0  # the last difference over one step

    def has_arrived(self) -> bool:
        """Whether reading all of them waits for nothing."""
        return not self.pending or self.pending[-1].sums.ready()

    def read(self, *, wait: bool) -> Change | None:
        """The oldest one that is pending, if it has arrived or the host is to ``wait`` for it."""
        if not self.pending or not (wait or self.pending[0].sums.ready()):
            return None
        sums, step, since = self.pending.pop(0)
        self.take(Change(sums.ratio(), step, since))
        return self.last

    def take(self, change: Change) -> None:
        """``change`` is the last one that was read."""
        before, self.last = self.last, change
        if before is None or before.step != change.step - 1:
            self._paces.clear()
            self._single, before = 0.0, None
        if change.since == 1:
            self._single = change.diff
        goes_on = before is not None and before.since == change.since - 1
        added = change.diff - before.diff if before is not None and goes_on else 0.0
        self._paces.append(max(added, change.diff / change.since, self._single))

    def expected(self, step: int, since: int, *, evenly: bool = False) -> float | None:
        """The difference at ``step`` from ``since`` steps earlier (formula above, or as if it grew ``evenly``); None
        where the step before has not measured, or the number has not arrived."""
        last, paces = self.last, self._paces
        if last is None or last.step != step - 1:
            return None
        if evenly:
            return last.diff * since / last.since
        grown = (paces[-1] / paces[0]) ** 0.5 if len(paces) == paces.maxlen and paces[0] > 0 else 1.0
        pace = paces[-1] * min(max(grown, 1.0), MOST_GROWTH)
        return last.diff + pace if since == last.since + 1 else pace * since

    def drop(self, before: int | None = None) -> None:
        """Forgets what was compared with a step before step ``before`` (None: everything)."""
        self.pending = [] if before is None else [one for one in self.pending if one.step - one.since >= before]
        if before is None or (self.last is not None and self.last.step - self.last.since < before):
            self.last = None
            self._paces.clear()

    def restart(self, start: int) -> None:
        """Step ``start`` turns out to be step 0 of a generation."""
        self.drop(before=start)
        self.pending = [one._replace(step=one.step - start) for one in self.pending]
        if self.last is not None:
            self.last = self.last._replace(step=self.last.step - start)
