"""The times of a generation's steps: they run one way, and jump back when the next generation begins."""

from __future__ import annotations

from dataclasses import dataclass, field

from .transfer import Ticket


@dataclass
class LateTime:
    """A time on its way to the host, and the step of its call."""

    step: int
    branch_call: bool
    certain: bool  # False: only this time can tell whether the call began a generation
    ticket: Ticket


@dataclass
class Times:
    """What the times of the calls tell of the steps of one module in one session."""

    points: list[int] = field(default_factory=list)  # of each step: how many other times came before it
    values: list[float | None] = field(default_factory=list)  # of each step, None until it is known
    direction: int = 0  # -1 when times fall, +1 when they rise; learnt once, kept over generations
    last: float | None = None
    repeats: bool = False  # whether steps have had one time, as those of a solver that evaluates twice have
    _first: float | None = None
    _moves: int = 0

    def begin_step(self, time: float | None, *, begins: bool) -> bool:
        """Whether the next step begins a generation: because ``begins`` says so, or because ``time`` (None: not known
        yet) cannot follow the times so far."""
        begins = begins or (time is not None and self.jumped(time))
        if begins:
            self.end()
        again = bool(self.points) and time is not None and time == self.last
        self.repeats |= again
        self.points.append(self.points[-1] + (not again) if self.points else 0)
        self.values.append(time)
        if time is not None:
            self.observe(time)
        return begins

    def jumped(self, time: float) -> bool:
        """Whether ``time`` cannot follow the times so far: back at the start, or against their direction."""
        if self._first is None or self.last is None:
            return False
        if time == self._first:
            return True
        return self.direction != 0 and (time - self.last) * self.direction < 0

    def observe(self, time: float) -> None:
        if self.last is not None and time != self.last:
            self._moves += 1
            if self._moves == 1 and self.direction == 0:
                self.direction = 1 if time > self.last else -1
        self._first = time if self._first is None else self._first
        self.last = time

    def late(self, step: int, time: float) -> bool:
        """Takes in the time of ``step``, which has been placed before; True: it began a new generation, of which it is
        step 0 from now on."""
        jumped = step > 0 and self.jumped(time)
        if step < len(self.values):
            self.values[step] = time
        if jumped:
            self._first = self.last = None
            self._moves = 0
            self.values = self.values[step:]
            self.points = [point - self.points[step] for point in self.points[step:]]
            self.repeats = len(self.points) > 1 + self.points[-1]
        elif step > 0 and time == self.last:
            self.points[step:] = [point - 1 for point in self.points[step:]]
            self.repeats = True
        self.observe(time)
        return jumped

    def end(self) -> None:
        if self._moves < 2:
            self.direction = 0  # one move proves nothing: it may have been two runs of one step each
        self.points, self.values, self.repeats = [], [], False
        self._first = self.last = None
        self._moves = 0
