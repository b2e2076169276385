"""What plans carry over to: each case of benchmarks/tune.py makes plans, uses them elsewhere and returns rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from _tune_grid import CARRIED, GUIDANCE, SIZES, TUNED_ON, Setup
from _tune_runs import FITTED, SETTINGS, Rig, as_if_made_for, plan_for, without_corrections

import dit_compile
from dit_compile.plans import Plan
from dit_compile.tuning.contest import Result, at_equal_cost
from dit_compile.tuning.drawing import Prompt
from dit_compile.tuning.tuner import Tuner

HOME = Setup()
Row = dict[str, Any]


@lru_cache
def at_home() -> tuple[Rig, Plan]:
    """The plan that other cases use elsewhere."""
    rig = Rig(HOME)
    return rig, plan_for(rig.tuner(), CARRIED)


def _row(name: str, result: Result, **more: Any) -> Row:
    return {
        "name": name, "cost": round(result.cost, 3), "psnr": round(result.mean, 2),
        "worst_psnr": round(result.worst, 2), **more,
    }  # fmt: skip


def prompts() -> list[Row]:
    """Prompts and seeds."""
    rig, plan = at_home()
    others = [Prompt(one.text, one.seed + 400) for one in FITTED]
    return [
        _row("prompts and seeds of the fit", rig.judge(plan, FITTED)),
        _row("prompts of the fit, other seeds", rig.judge(plan, others)),
        _row("other prompts and seeds", rig.judge(plan)),
    ]


def _elsewhere(setups: Sequence[Setup], names: Sequence[str]) -> list[Row]:
    """For each setup: the plan made at home, the plan made there, and the presets there at its cost."""
    rows = []
    for setup, name in zip(setups, names, strict=True):
        rig = Rig(setup)
        own, home = plan_for(rig.tuner(), CARRIED), at_home()[1]
        carried = as_if_made_for(home, own)
        contest = rig.contest(own)
        presets = at_equal_cost(contest.presets(own.parts, carried.cost), carried.cost, "presets")
        rows += [
            _row(f"{name}: plan made for 28 steps, guidance 2", rig.judge(carried), refused=rig.why_not(home)),
            _row(f"{name}: plan made for it", rig.judge(own)),
        ]
        if presets is not None:
            rows.append(_row(f"{name}: {presets.name}", presets))
    return rows


def guidance() -> list[Row]:
    return _elsewhere([Setup(guidance=one) for one in GUIDANCE], [f"guidance {one:g}" for one in GUIDANCE])


def resolutions() -> list[Row]:
    return _elsewhere([Setup(size=one) for one in SIZES], [f"{one} x {one} pixels" for one in SIZES])


def numbers() -> list[Row]:
    return _elsewhere([Setup(numbers=one) for one in ("bfloat16", "int8")], ["bfloat16", "int8"])


def steps() -> list[Row]:
    """The plan for 28 steps at 50, and what it costs to tune anew."""
    rows = []
    for count in (28, 50):
        rig = Rig(Setup(steps=count))
        with rig.effort() as effort:
            dit_compile.tune(rig.draw, TUNED_ON, model=rig.model, cost=CARRIED, **SETTINGS)
        rows.append({"name": f"tune, {count} steps, 16 prompts", **effort})
    rows[-1]["refused"] = rig.why_not(at_home()[1])
    return rows


def fits() -> list[Row]:
    """How the plan is made."""
    rig, plan = at_home()

    def judged(name: str, tuner: Tuner, rig: Rig = rig) -> Row:
        return _row(name, rig.judge(plan_for(tuner, CARRIED)))

    rows = [_row(f"as tune does: {len(FITTED)} prompts, 4 snapshots, front=0, corrections", rig.judge(plan))]
    rows += [judged(f"{count} prompts", rig.tuner(TUNED_ON[:count])) for count in (4, 8, 16)]
    rows += [judged(f"{count} snapshots", rig.tuner(snapshots=count)) for count in (3, 6)]
    tuner = rig.tuner()
    without_corrections(tuner)
    rows.append(judged("computed steps are not corrected", tuner))
    there = Rig(HOME, front=1)
    return [*rows, judged("front=1", there.tuner(), there)]


CASES: dict[str, Callable[[], list[Row]]] = {
    "prompts and seeds": prompts,
    "guidance": guidance,
    "numbers": numbers,
    "steps": steps,
    "resolution": resolutions,
    "the fit": fits,
}
