"""Configurations drawn at random, the same ones in every process and at every run.

cache-dit must know all its jobs before it starts, so the examples are drawn here instead of inside a test.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from parity_support.cases import Case
from parity_support.config import Knobs, Scope

COUNT = 44
THINNED = 5  # hypothesis varies one example into the next, so neighbours are much alike
# Each of these cuts is a compilation. The shortest lists have 12 and 4 blocks.
CUTS: dict[Scope, list[tuple[int, int]]] = {
    "chain": [(1, 0), (2, 3), (5, 1), (9, 0)],
    "container": [(1, 0), (1, 2), (2, 1), (3, 0)],
}
# From off over what the model shows, most of it below 0.25, to two that always hit, one of them without looking.
THRESHOLDS = [0.0, 0.5, 1.0, 0.03, *[n / 100 for n in range(5, 24)]]
# Sampled, for hypothesis loves the ends of a range. A model of four or more reused steps in a row leaves the range in
# which a Taylor series of order two or three means anything, and rounding is amplified like everything else.
STREAKS = {order: [-1, -1, 0, 1, 2, 3, 4, 6] if order < 2 else [0, 1, 1, 2, 2, 2, 3, 3] for order in range(4)}


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Knobs, int]:
    """Any settings, with one branch or two."""
    scope: Scope = draw(st.sampled_from(["chain", "container"]))
    fn, bn = draw(st.sampled_from(CUTS[scope]))
    order = draw(st.sampled_from([0, 0, 1, 1, 2, 3]))
    knobs = Knobs(
        fn=fn,
        bn=bn,
        warmup_steps=draw(st.sampled_from(range(11))),
        warmup_interval=draw(st.sampled_from([1, 1, 2, 3, 4])),
        max_cached_steps=draw(st.sampled_from([-1, -1, -1, -1, 0, 1, 2, 5, 8, 11])),
        max_continuous_cached_steps=draw(st.sampled_from(STREAKS[order])),
        residual_diff_threshold=draw(st.sampled_from(THRESHOLDS)),
        forecast="taylorseer" if order else "reuse",
        taylor_order=max(order, 1),
        scope=scope,
    )
    return knobs, draw(st.sampled_from([1, 2]))


def name(knobs: Knobs, branches: int) -> str:
    """``chain-F1B0-W4I1-M-1C2-t0.12-taylor1-cfg``."""
    forecast = "reuse" if knobs.forecast == "reuse" else f"taylor{knobs.taylor_order}"
    limits = f"M{knobs.max_cached_steps}C{knobs.max_continuous_cached_steps}"
    warmup = f"W{knobs.warmup_steps}I{knobs.warmup_interval}"
    guard = f"F{knobs.fn}B{knobs.bn}-{warmup}-{limits}-t{knobs.residual_diff_threshold}"
    return f"{knobs.scope}-{guard}-{forecast}" + "-cfg" * (branches == 2)


@functools.cache
def drawn_cases() -> list[Case]:
    """Chains run on 1.5.3, two lists on both versions."""
    found: dict[tuple[Knobs, int], None] = {}

    @settings(
        max_examples=COUNT * THINNED + 20,  # some come twice
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(jobs())
    def collect(job: tuple[Knobs, int]) -> None:
        found[job] = None

    collect()
    cases = []
    for knobs, branches in list(found)[::THINNED][:COUNT]:
        case = Case(f"{name(knobs, branches)}-1.5.3", "1.5.3", knobs, branches)
        cases.append(case)
        if knobs.scope == "container":
            cases.append(replace(case, name=f"{name(knobs, branches)}-1.0.14", version="1.0.14"))
    return cases
