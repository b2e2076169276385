"""What the cache did, as data."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import CacheConfig


class Stopwatch:
    """Runs from construction to the first ``stop()``. On a GPU it records two events; nothing waits for the device."""

    __slots__ = ("_begin", "_end", "_seconds", "_started", "_stopped", "_stream")

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._stopped = False
        if device.type == "cuda":
            self._begin = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)
            self._stream = torch.cuda.current_stream(device)
            self._begin.record(self._stream)
        else:
            self._started = time.perf_counter()

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        if self._stream is not None:
            self._end.record(self._stream)
        else:
            self._seconds = time.perf_counter() - self._started

    def ready(self) -> bool:
        """Whether ``seconds`` returns without waiting for the device."""
        return self._stream is None or self._end.query()

    def seconds(self) -> float:
        if self._stream is None:
            return self._seconds
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1000


def stopwatch(device: torch.device, config: CacheConfig) -> Stopwatch | None:
    """A running stopwatch. On a GPU only where ``summary`` asks for one: its two events take the host as long as a
    kernel. On the host it is a matter of less than a microsecond."""
    return Stopwatch(device) if config.summary or device.type != "cuda" else None


@dataclass(slots=True)
class StepStats:
    """One decision: one region of one branch at one step.

    ``index`` counts the steps of the generation from 0, ``diff`` is the measured relative change or None where the
    decision needed none. ``reason`` is a code from the README's table ("warmup", "threshold", "hit", ...). ``seconds``
    is the time of the region or of its forecast; None until it is known (see ``GenerationStats.settle``), and where
    nothing was timed (see ``stopwatch``).
    """

    index: int
    branch: int
    action: str  # "compute" or "reuse"
    reason: str
    diff: float | None = None
    region: int = 0
    rows: int = 0  # with batch_decision=halves or rows: which half, which row
    seconds: float | None = field(default=None, repr=False)


def share_run(records: Sequence[StepStats], skipped: Sequence[int], blocks: int) -> float:
    """The share of all ``blocks`` that ran in the steps of ``records``; ``skipped`` counts the blocks that a reused
    step of each region does not run. Branches, and rows that decide alone, are averaged."""
    saved = sum(skipped[record.region] for record in records if record.action == "reuse")
    return 1 - saved * len(skipped) / blocks / max(len(records), 1)


@dataclass
class GenerationStats:
    """One run over the timesteps of one module in one session.

    ``bytes_held`` are the bytes of snapshots and probes that the generation holds at present (or held when it ended),
    ``capped`` counts computed steps that for ``max_bytes`` kept fewer snapshots than the forecaster weighs,
    ``bytes_wanted`` is what the module would then have held over all sessions without it.
    ``host_reads`` counts how often the host waited for a number, ``clock`` says how generations are told apart,
    ``cuda_graphs`` which segments were replayed at the last call and why others were not (empty: none could be),
    ``plan`` which plan was in force, or why not (empty: there was none).
    """

    module: str
    session: str
    config: CacheConfig
    clock: str = ""
    steps: list[StepStats] = field(default_factory=list)
    bytes_held: int = 0
    capped: int = 0
    bytes_wanted: int = 0
    host_reads: int = 0
    cuda_graphs: str = ""
    plan: str = ""
    ended: bool = False
    hints: bool = field(default=True, repr=False)
    _timing: deque[tuple[StepStats, Stopwatch, int]] = field(default_factory=deque, repr=False)  # not known yet

    def record(self, step: StepStats, watch: Stopwatch | None, parts: int = 1) -> None:
        """Adds ``step``, one of ``parts`` that ``watch`` times together, and stops ``watch``."""
        self.steps.append(step)
        if watch is not None:
            watch.stop()
            self._timing.append((step, watch, parts))
            self.settle()

    def settle(self, *, wait: bool = False) -> None:
        """Turns stopwatches into seconds, so that no event of a GPU is kept longer than it takes to happen."""
        while self._timing:
            try:
                step, watch, parts = oldest = self._timing.popleft()
            except IndexError:  # another thread, which reads the statistics, was faster
                return
            if not (wait or watch.ready()):
                self._timing.appendleft(oldest)
                return
            step.seconds = watch.seconds() / parts

    def successor(self) -> GenerationStats:
        """Those of the next generation, empty. Steps that are moved there may still wait for their seconds."""
        return GenerationStats(
            self.module, self.session, self.config, self.clock, hints=self.hints, _timing=self._timing
        )

    @property
    def reused(self) -> int:
        return sum(step.action == "reuse" for step in self.steps)

    @property
    def computed(self) -> int:
        return len(self.steps) - self.reused

    @property
    def branches(self) -> list[int]:
        return sorted({step.branch for step in self.steps})

    def seconds_saved(self) -> float | None:
        """Reused steps times the median time of a computed region, less the time of the forecasts (per region). The
        median, because the first computed step of a process often pays for lazy initialisation. None where no step was
        timed: on a GPU without ``summary``."""
        self.settle(wait=True)
        timed = [(step, step.seconds) for step in self.steps if step.seconds is not None]
        if not timed:
            return None
        saved = 0.0
        for region in {step.region for step, _ in timed}:
            here = [(step.action, seconds) for step, seconds in timed if step.region == region]
            computed = sorted(seconds for action, seconds in here if action == "compute")
            reused = [seconds for action, seconds in here if action == "reuse"]
            saved += computed[len(computed) // 2] * len(reused) - sum(reused) if computed else 0.0
        return saved

    def smallest_threshold(self) -> float | None:
        """The smallest measured difference: a threshold above it would have hit at least once."""
        diffs = [step.diff for step in self.steps if step.diff is not None and math.isfinite(step.diff)]
        return min(diffs, default=None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        steps = [
            {
                "index": step.index,
                "branch": step.branch,
                "region": step.region,
                "rows": step.rows,
                "action": step.action,
                "reason": step.reason,
                "diff": step.diff,
            }
            for step in self.steps
        ]
        return {
            "module": self.module,
            "session": self.session,
            "config": self.config.describe(),
            "bytes_held": self.bytes_held,
            "capped": self.capped,
            "bytes_wanted": self.bytes_wanted,
            "host_reads": self.host_reads,
            "cuda_graphs": self.cuda_graphs,
            "plan": self.plan,
            "steps": steps,
        }
