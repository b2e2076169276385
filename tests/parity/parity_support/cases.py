"""The configurations that are compared with cache-dit, named and with the version and layout each is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parity_support.config import Knobs, Scope, StreakRule
from parity_support.peer import Job

BLOCKS: dict[Scope, int] = {"chain": 12, "container": 4}  # in the shortest list that the model has in this layout


@dataclass(frozen=True)
class Case:
    name: str
    version: StreakRule
    knobs: Knobs
    branches: int = 1
    hits: bool = True  # the run is expected to skip something; else it is expected to skip nothing

    @property
    def job(self) -> Job:
        return self.knobs, self.branches

    @property
    def for_backend(self) -> bool:
        """``dit_cache`` counts streaks as 1.5.3 does, and needs a region with at least one block in it."""
        quirk = self.version == "1.0.14" and self.knobs.max_continuous_cached_steps >= 0
        return not quirk and self.knobs.fn + self.knobs.bn < BLOCKS[self.knobs.scope]


def chain(name: str, branches: int = 1, hits: bool = True, **knobs: Any) -> Case:
    """One decision for both lists: the registered FLUX layout of 1.5.3 and of all published numbers."""
    return Case(f"chain-{name}", "1.5.3", Knobs(**knobs), branches, hits)


def container(name: str, version: StreakRule = "1.0.14", branches: int = 1, hits: bool = True, **knobs: Any) -> Case:
    """One decision per list: the registered FLUX layout of 1.0.14; 1.5.3 can be told to do the same."""
    return Case(f"container-{version}-{name}", version, Knobs(scope="container", **knobs), branches, hits)


# EAGER hits wherever a limit does not forbid it, MEDIUM at most steps.
EAGER: dict[str, Any] = {
    "fn": 1,
    "warmup_steps": 4,
    "residual_diff_threshold": 0.24,
}  # hits wherever a limit does not forbid it
MEDIUM: dict[str, Any] = {"fn": 1, "warmup_steps": 4, "residual_diff_threshold": 0.12}
F4: dict[str, Any] = {"fn": 4, "warmup_steps": 4, "max_continuous_cached_steps": 4, "residual_diff_threshold": 0.12}
BROKEN: dict[str, Any] = {"fn": 1, "warmup_steps": 4, "max_continuous_cached_steps": 3, "residual_diff_threshold": 0.1}
TAYLOR1: dict[str, Any] = {"forecast": "taylorseer", "taylor_order": 1}
TAYLOR2: dict[str, Any] = {"forecast": "taylorseer", "taylor_order": 2}
TAYLOR3: dict[str, Any] = {"forecast": "taylorseer", "taylor_order": 3}

CASES = [
    chain("defaults"),
    chain("defaults-cfg", branches=2),
    chain("f4", **F4),
    chain("f4-taylor1", **F4, **TAYLOR1),
    chain("f4-taylor1-cfg", branches=2, **F4, **TAYLOR1),
    chain("f1-mc6-taylor2", max_continuous_cached_steps=6, **EAGER, **TAYLOR2),
    chain("f1-mc6-taylor2-cfg", branches=2, max_continuous_cached_steps=6, **EAGER, **TAYLOR2),
    chain("f1-mc3-taylor3", max_continuous_cached_steps=3, **EAGER, **TAYLOR3),
    chain("f1b2", bn=2, **MEDIUM),
    chain("f1b2-taylor1", bn=2, **MEDIUM, **TAYLOR1),
    chain("f1b2-taylor1-cfg", bn=2, branches=2, **MEDIUM, **TAYLOR1),
    chain("f1-mc1", max_continuous_cached_steps=1, **EAGER),
    chain("f1-mc3-broken-by-threshold", **BROKEN),
    chain("f1-limit3-cfg", branches=2, max_cached_steps=3, **EAGER),
    chain("f1-interval2", fn=1, warmup_steps=8, warmup_interval=2, residual_diff_threshold=0.24, **TAYLOR1),
    chain("f1-interval3-cfg", 2, fn=1, warmup_steps=9, warmup_interval=3, residual_diff_threshold=0.24, **TAYLOR2),
    chain("f1-no-warmup-taylor2", fn=1, warmup_steps=0, residual_diff_threshold=0.5, **TAYLOR2),
    chain("f1-never-cached", hits=False, max_cached_steps=0, **EAGER),
    chain("f1-never-in-a-row", hits=False, max_continuous_cached_steps=0, **EAGER),
    chain("f1-threshold-off", hits=False, fn=1, residual_diff_threshold=0.0),
    container("f2", fn=2),
    container("f2-cfg", branches=2, fn=2),
    container("f4-empty-double-region", fn=4, warmup_steps=4, residual_diff_threshold=0.12, **TAYLOR1),
    container("f3b2-overlap", fn=3, bn=2, warmup_steps=4, residual_diff_threshold=0.12, **TAYLOR1),
    container("f1-mc4", max_continuous_cached_steps=4, **MEDIUM),
    container("f1-mc3-broken-by-threshold", **BROKEN),
    container("f1-mc4-taylor1", max_continuous_cached_steps=4, **MEDIUM, **TAYLOR1),
    container("f1-taylor1", **MEDIUM, **TAYLOR1),
    container("f1b1", bn=1, **MEDIUM),
    container("f1b1-taylor1-cfg", branches=2, bn=1, **MEDIUM, **TAYLOR1),
    container("f1-mc1", max_continuous_cached_steps=1, **EAGER),
    container("f1-interval2", fn=1, warmup_steps=8, warmup_interval=2, residual_diff_threshold=0.12),
    container("f1-limit3-cfg", branches=2, max_cached_steps=3, **MEDIUM, **TAYLOR1),
    container("f1-mc3-broken-by-threshold", "1.5.3", **BROKEN),
    container("f1-mc4-taylor1", "1.5.3", max_continuous_cached_steps=4, **MEDIUM, **TAYLOR1),
    container("f1-mc1", "1.5.3", max_continuous_cached_steps=1, **EAGER),
    container("f1b1-mc2-taylor2-cfg", "1.5.3", branches=2, bn=1, max_continuous_cached_steps=2, **EAGER, **TAYLOR2),
]
BY_NAME = {case.name: case for case in CASES}
