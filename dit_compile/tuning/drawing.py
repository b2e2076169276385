"""Calls the user's ``draw``, with the calls of the model observed or under given settings."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ..api import session, stats
from ..runtime.observer import Observer, observing
from ..runtime.stats import GenerationStats
from .errors import TuneError
from .pictures import pixels_of

_draws = itertools.count(1)  # of this process: each has a session of its own


class Prompt(NamedTuple):
    """What is drawn: ``text`` is whatever ``draw`` takes as a prompt."""

    text: Any
    seed: int


class Drawn(NamedTuple):
    """What a draw has returned, its pixels, the seconds that it took, and what the cache did."""

    result: Any
    pixels: Tensor
    seconds: float
    generations: list[GenerationStats]


class Artist:
    """Draws by ``draw(prompt, seed)``, or ``draw(prompt, seed, steps=n)`` where it can be asked for a number of steps.

    ``steps`` is that of all draws that ask for no other.
    """

    def __init__(self, draw: Callable[..., Any], steps: int | None = None) -> None:
        self._draw = draw
        parameters = inspect.signature(draw).parameters.values()
        self.takes_steps = any(one.name == "steps" or one.kind is one.VAR_KEYWORD for one in parameters)
        if steps is not None and not self.takes_steps:
            raise TuneError("steps= is given, but draw() takes no argument steps: draw(prompt, seed, steps)")
        self._steps = steps
        self._on_draw: Callable[[], None] = lambda: None

    @contextmanager
    def counted(self, advance: Callable[[], None]) -> Iterator[None]:
        """Calls ``advance`` after each draw of the body."""
        self._on_draw = advance
        try:
            yield
        finally:
            self._on_draw = lambda: None

    def draw(self, prompt: Prompt, *, steps: int | None = None, **settings: Any) -> Drawn:
        """One draw in a session of its own with ``settings``."""
        name = f"tune {next(_draws)}"
        wanted = self._steps if steps is None else steps
        more = {} if wanted is None else {"steps": wanted}
        one = session(name, **settings)
        one.hints = False  # that a preset reuses nothing is a figure here, no fault
        with one:
            start = time.perf_counter()
            result = self._draw(prompt.text, prompt.seed, **more)
            seconds = time.perf_counter() - start
        self._on_draw()
        return Drawn(result, pixels_of(result), seconds, [one for one in stats() if one.session == name])

    def observed(self, prompt: Prompt, observer: Observer) -> Drawn:
        """One draw whose calls of the model ``observer`` carries out."""
        token = observing.set(observer)
        try:
            return self.draw(prompt)
        finally:
            observing.reset(token)
