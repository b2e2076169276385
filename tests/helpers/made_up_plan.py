"""A plan, with figures, that nobody had to tune."""

from __future__ import annotations

from typing import Any

from dit_compile.plans import Conditions, Cut, Forecast, Part, Plan, Term, UpdateRule


def made_up_part(**changes: Any) -> Part:
    """Six steps of two branches, two streams: 0, 1, 3 and 5 are computed, 3 is corrected."""
    rule = UpdateRule((Term(0, None), Term(0, 0)), (1.0, -0.1), 1e-7)
    times = (1000.0, 800.0, 600.0, 400.0, 300.0, 100.0)
    conditions = Conditions(
        structure="s", weights="w", dtype="float32", torch="2.13", shapes=((5, 16),), times=times, branches=(2,) * 6,
        rules=(rule, None),
    )  # fmt: skip
    forecasts = {
        2: Forecast((0, 1), ((((-1.0, 2.0), (-0.5, 1.5)),), (((-0.8, 1.8), (-0.5, 1.5)),))),
        4: Forecast((0, 1, 3), ((((0.5, -1.0, 1.5), (0.0, 0.0, 1.0)),),) * 2),
    }
    correction = Forecast((0, 1, 3), ((((0.1, -0.1, 1.0), (0.0, 0.0, 1.0)),),) * 2)
    given = {"forecasts": forecasts, "corrections": {3: correction}, "skipped": (6,), "blocks": 6, **changes}
    return Part("Model", Cut(0, 0, "chain"), conditions, **given)


def made_up_figures(recommended: bool = True) -> dict[str, Any]:
    def result(name: str, cost: float, first: float, second: float, seconds: float) -> dict[str, Any]:
        return {
            "name": name, "cost": cost, "psnr": (first + second) / 2, "worst_psnr": min(first, second),
            "psnr_of_each": [first, second], "seconds": seconds, "bytes_held": 2**20,
        }  # fmt: skip

    note = "8.0 dB better than presets (fast) on average" if recommended else "presets (fast) has 50.0 dB on average"
    return {
        "held_out": [["a [red] cat", 3], ["a ship in a storm, oil on canvas, 1890", 7]],
        "uncached_seconds": 2.0,
        "plan": result("plan", 4.0, 51.0, 49.0, 1.25),
        "others": [result("presets (fast)", 4.2, 43.0, 41.0, 1.5), result("fewer steps", 4.0, 33.0, 35.0, 1.0)],
        "recommended": recommended,
        "note": note,
    }


def made_up_plan(recommended: bool = True, **changes: Any) -> Plan:
    made = {
        "dit_compile": "0.1.0", "torch": "2.13.0", "date": "2026-01-02T03:04:05+00:00", "in_sequence": [True],
        "prompts": [["a dog", 0], ["a tree", 1], ["a house", 2]],
    }  # fmt: skip
    return Plan((made_up_part(**changes),), {"cost": 0.7}, made_up_figures(recommended), made)
