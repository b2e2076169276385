"""Differences that a step has measured without waiting for them; a later step of the branch reads them."""

from __future__ import annotations

from typing import NamedTuple

from .transfer import Ticket


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

    __slots__ = ("last", "pending")

    def __init__(self) -> None:
        self.pending: list[Measured] = []
        self.last: Change | None = None

    def has_arrived(self) -> bool:
        """Whether reading all of them waits for nothing."""
        return not self.pending or self.pending[-1].sums.ready()

    def read(self, *, wait: bool) -> Change | None:
        """The oldest one that is pending, if it has arrived or the host is to ``wait`` for it."""
        if not self.pending or not (wait or self.pending[0].sums.ready()):
            return None
        sums, step, since = self.pending.pop(0)
        self.last = Change(sums.ratio(), step, since)
        return self.last

    def expected(self, step: int, since: int) -> float | None:
        """The difference at ``step`` from ``since`` steps earlier, as if it grew evenly, after what the step before has
        measured: right after a computed step, that is the change that led to this one. None where it is not known."""
        last = self.last
        return None if last is None or last.step != step - 1 else last.diff * since / last.since

    def drop(self, before: int | None = None) -> None:
        """Forgets what was compared with a step before step ``before`` (None: everything)."""
        self.pending = [] if before is None else [one for one in self.pending if one.step - one.since >= before]
        if before is None or (self.last is not None and self.last.step - self.last.since < before):
            self.last = None

    def restart(self, start: int) -> None:
        """Step ``start`` turns out to be step 0 of a generation."""
        self.drop(before=start)
        self.pending = [one._replace(step=one.step - start) for one in self.pending]
        if self.last is not None:
            self.last = self.last._replace(step=self.last.step - start)
