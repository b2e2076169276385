"""Progress bars for long measurements: one line per phase, drawn rarely so that drawing does not disturb timing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


SPEED_PERIOD = 600.0  # seconds that the estimate of the remaining time looks back; a piece may take a minute


class Bars:
    """Phases on a ``rich`` progress display, or nothing at all without a console."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """One line while the body runs; call what it yields after each of ``total`` pieces (None: unknown length)."""
        progress = self._progress
        if progress is None:
            yield lambda: None
            return
        task, done = progress.add_task(name, total=total), 0

        def advance() -> None:
            nonlocal done
            done += 1
            progress.advance(task)

        yield advance
        progress.update(task, total=done or 1, completed=done or 1)  # a phase may end before its total


@contextlib.contextmanager
def bars_on(console: Console | None) -> Iterator[Bars]:
    """Progress bars on ``console`` for the duration of the body; None shows nothing."""
    if console is None:
        yield Bars(None)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Left(ProgressColumn):
        """The estimate of the remaining time of a phase that is under way."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            seconds = None if task.finished else task.time_remaining
            left = "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
            return Text(left, style="progress.remaining")

    columns = (
        TextColumn("{task.description:<26}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        Left(),
    )  # fmt: skip
    with Progress(*columns, console=console, refresh_per_second=4, speed_estimate_period=SPEED_PERIOD) as progress:
        yield Bars(progress)
