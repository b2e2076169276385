"""What lives from one call of a module to the next, in one session."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..readers import format_bytes
from .budget import Budget
from .clock import Clock, Position
from .inputs import Identity
from .planned import PlannedRun
from .slots import Slots
from .stats import GenerationStats

log = logging.getLogger("dit_compile")


@dataclass(frozen=True)
class SharedDiff:
    """The difference that one branch of a step has measured."""

    step: int
    branch: int
    diff: float


class Prompt(NamedTuple):
    """Which tensors the conditioning is, and samples: of them, or of the latents that were denoised with it last."""

    identity: Identity
    samples: list[Tensor]


@dataclass
class Track:
    """One of several trajectories of one prompt: its state, and a sample of its last latents."""

    state: ModuleState
    latents: Tensor


@dataclass
class Trail:
    """What a default session tells those of other threads (see trail.py)."""

    prompts: dict[int, Identity] = field(default_factory=dict)  # of each branch of the generation
    moves: int = 0  # how often the generation has come from one thread to another
    left: dict[int, float] = field(default_factory=dict)  # when a branch seems to have gone on in another thread


@dataclass
class ModuleState:
    """State of one module in one session. Used by one call at a time.

    ``history`` takes the statistics of each generation, ``on_end`` is called with them when it ends.
    """

    history: deque[GenerationStats] = field(default_factory=deque)
    on_end: Callable[[GenerationStats], None] = lambda stats: None
    budget: Budget = field(default_factory=Budget)  # the module's, shared with its other sessions
    clock: Clock = field(default_factory=Clock)
    slots: dict[tuple[int, int, int, int], Slots] = field(default_factory=dict)  # (frame, region, branch, group)
    diffs: dict[tuple[int, int, int], SharedDiff] = field(default_factory=dict)  # (frame, region, group)
    generation: GenerationStats | None = None
    busy: threading.Lock = field(default_factory=threading.Lock)  # held during a call
    origin: Tensor | None = None  # a sample of the first latents of the generation
    latest: dict[tuple[int, ...], Prompt] = field(default_factory=dict)  # by prompt, its latents; where reuse is blind
    prompts: dict[tuple[int, int], Prompt] = field(default_factory=dict)  # (frame, branch); where reuse is blind
    tracks: list[Track] = field(default_factory=list)  # trajectories that may advance together, this one first
    current: int = 0  # the one of them that was called last
    several: bool = False  # whether they do advance together, as is known two steps later
    trail: Trail = field(default_factory=Trail)
    planned: PlannedRun | None = None  # the generation under a plan
    announced: int | None = None  # fewest snapshots per region that a message has said the memory cap allows

    def is_default(self) -> bool:
        """Whether this is the state of a default session, with a generation under way."""
        return bool(self.trail.prompts) and self.clock.step >= 0

    def begin_generation(self, stats: GenerationStats, origin: Tensor | None) -> None:
        """Ends the running generation and frees its snapshots."""
        self.end_generation()
        self.free()
        self.generation, self.origin, self.planned = stats, origin, None
        self.history.append(stats)

    def end_generation(self) -> None:
        """Closes the statistics of the running generation, also of other trajectories."""
        for other in self._others():
            other.end_generation()
        stats = self.generation
        if stats is not None and not stats.ended:
            stats.ended = True
            if self.planned is not None:
                self.planned.end()
            stats.bytes_held = self.bytes_held()
            self.on_end(stats)

    def restart(self, start: int) -> None:
        """Step ``start`` of the running generation turns out to be step 0 of the next, because its time was read late:
        decisions and snapshots from there on move into it."""
        old = self.generation
        assert old is not None
        moved = [step for step in old.steps if step.index >= start]
        old.steps = [step for step in old.steps if step.index < start]
        self.end_generation()
        for slots in self.slots.values():
            slots.restart(start)
        self.diffs.clear()
        for step in moved:
            step.index -= start
        self.generation = old.successor()
        if self.planned is not None:
            self.planned = self.planned.restarted(self.generation)
        self.generation.steps = moved
        self.history.append(self.generation)

    def follow(self, position: Position, frame: int) -> None:
        """Drops what a call at ``position`` shows to be of no use any more."""
        for left_frame, branch in position.left:
            self.drop(branch, left_frame, why="absent")  # no forecast over a gap; it may not return
        if position.new_prompt:
            self.drop(position.branch, frame)  # never forecast one prompt from the snapshots of another
        if position.settled is not None:
            self.drop(position.branch, before=position.settled)

    def drop(
        self, branch: int, frame: int | None = None, *, before: int | None = None, why: str = "no_snapshot"
    ) -> None:
        """Frees what ``branch`` holds in ``frame`` (None: in all of them) of steps before step ``before`` (None: of all
        steps). ``why`` will be the reason of the step that computes it again."""
        for key, slots in self.slots.items():
            if key[2] == branch and frame in (None, key[0]):
                slots.drop(why, before)

    def capped(self, kept: int, wanted: int, limit: int) -> None:
        """Counts a computed step that may keep but ``kept`` of ``wanted`` snapshots; says so once per session, and once
        more when steps must be computed for it."""
        stats = self.generation
        assert stats is not None
        stats.capped += 1
        stats.bytes_wanted = max(stats.bytes_wanted, self.budget.wanted())
        if self.announced is not None and (kept or not self.announced):
            return
        self.announced = kept
        cap, needed = format_bytes(limit), format_bytes(stats.bytes_wanted)
        log.warning(
            "dit_cache: max_bytes (DIT_CACHE_MAX_BYTES) is %s, but snapshots and probes would take %s: %s (%s, session "
            "%s). Raise it, or keep less: snapshot_dtype=float8, a lower taylor_order, a larger downsample_factor",
            cap if cap != needed else f"{limit} B",
            needed if cap != needed else f"{stats.bytes_wanted} B",
            f"{kept} of {wanted} snapshots are kept, so forecasts are of a lower order"
            if kept
            else "not even one snapshot fits everywhere, such steps are computed",
            stats.module,
            stats.session,
        )

    def bytes_held(self) -> int:
        """Safe to ask from another thread than the one that calls the model."""
        here = sum(slots.nbytes() for slots in list(self.slots.values()))
        return here + sum(other.bytes_held() for other in self._others())

    def _others(self) -> list[ModuleState]:
        return [track.state for track in self.tracks[1:]]

    def free(self) -> None:
        """Frees what the generation holds of earlier steps; statistics stay."""
        self.slots.clear()
        self.diffs.clear()
        self.prompts.clear()

    def release(self) -> None:
        """The generation is over: frees what it holds; the next call begins another."""
        self.end_generation()
        self.tracks = []
        self.free()
        self.clock.end()

    def take_over(self, other: ModuleState) -> None:
        """Goes on with the generation of ``other``."""
        self.clock, self.slots, self.diffs = other.clock, other.slots, other.diffs
        self.generation, self.origin, self.latest, self.prompts, self.planned = (
            other.generation, other.origin, other.latest, other.prompts, other.planned
        )  # fmt: skip
