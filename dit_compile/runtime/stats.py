"""What the cache did, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..config import CacheConfig
from .stopwatch import Stopwatch


@dataclass
class StepStats:
    """One decision: one region of one branch at one step.

    ``index`` counts the steps of the generation from 0, ``diff`` is the measured relative change or None where the
    decision needed none. ``reason`` is a code from the README's table ("warmup", "threshold", "hit", ...).
    """

    index: int
    branch: int
    action: str  # "compute" or "reuse"
    reason: str
    diff: float | None = None
    region: int = 0
    rows: int = 0  # with batch_decision=halves or rows: which half, which row
    stopwatch: Stopwatch | None = field(default=None, repr=False)
    share: float = field(default=1.0, repr=False)  # of the time, where several groups of rows ran together

    @property
    def seconds(self) -> float:
        """Time of the region or of its forecast."""
        return self.stopwatch.seconds() * self.share if self.stopwatch is not None else 0.0


@dataclass
class GenerationStats:
    """One run over the timesteps of one module in one session.

    ``bytes_held`` are the bytes of snapshots and probes that the generation holds at present (or held when it ended),
    ``capped`` counts computed steps that for ``max_bytes`` kept fewer snapshots than the forecaster weighs,
    ``bytes_wanted`` is what the module would then have held over all sessions without it.
    ``host_reads`` counts how often the host waited for a number, ``clock`` says how generations are told apart.
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
    ended: bool = False

    @property
    def reused(self) -> int:
        return sum(step.action == "reuse" for step in self.steps)

    @property
    def computed(self) -> int:
        return len(self.steps) - self.reused

    @property
    def branches(self) -> list[int]:
        return sorted({step.branch for step in self.steps})

    def seconds_saved(self) -> float:
        """Reused steps times the mean time of a computed region, less the time of the forecasts (per region)."""
        saved = 0.0
        for region in {step.region for step in self.steps}:
            here = [step for step in self.steps if step.region == region]
            computed = [step.seconds for step in here if step.action == "compute"]
            reused = [step.seconds for step in here if step.action == "reuse"]
            # the median: the first computed step of a process often pays for lazy initialisation
            saved += sorted(computed)[len(computed) // 2] * len(reused) - sum(reused) if computed else 0.0
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
            "steps": steps,
        }
