"""How good are plans of ``dit_compile.tune``, and what do they carry over to? A section of docs/tune.md, its picture.

The bundled model draws prompts that had no part in tuning, under plans of many costs; beside them stand the presets,
cache-dit and fewer steps from benchmarks/results/quality.json, which were drawn from the same prompts and seeds. Then
plans are used for what they were not made for. Cost is counted work, so the figures do not depend on the machine's
speed. About 25 minutes on one core.

    python benchmarks/tune.py             # draws what the result lacks
    python benchmarks/tune.py --fresh     # draws everything again, after a change of the tuner
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from _tune_carry import CASES
from _tune_grid import COSTS, Setup
from _tune_page import PAGE, PLOT, with_section
from _tune_plot import save_plot
from _tune_runs import Rig, plan_for
from quality_grid import HELD_OUT, Scene
from rich.console import Console

from dit_compile.tuning.contest import Result

RESULTS = Path(__file__).parent / "results" / "tune.json"


class Results:
    """What was measured, in a file that is complete after every row."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not fresh else {}
        self.data = {"scenes": {}, "carried": {}} | known
        self.data |= {
            "command": " ".join(["python", *sys.argv]),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "device": f"{platform.machine()} CPU, one thread",
            "loadavg": os.getloadavg(),
        }

    def save(self) -> None:
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")


def figures(result: Result) -> dict[str, Any]:
    """Cost in full steps, PSNR in dB."""
    each = [round(one, 2) for one in result.psnr]
    return {
        "cost": round(result.cost, 3),
        "psnr": round(result.mean, 2),
        "worst_psnr": round(result.worst, 2),
        "each": each,
    }


def draw_scenes(results: Results, console: Console, scenes: Sequence[Scene]) -> None:
    """Plans of all costs."""
    for scene in scenes:
        rows = results.data["scenes"].setdefault(scene.name, [])
        todo = [cost for cost in COSTS[scene.steps] if cost not in [row["asked"] for row in rows]]
        if not todo:
            continue
        rig = Rig(Setup(scene.steps, scene.guidance))
        tuner = rig.tuner()
        for cost in todo:
            plan = plan_for(tuner, cost / scene.steps)
            row = {"asked": cost, "computed": list(plan.parts[0].computed), **figures(rig.judge(plan))}
            rows.append(row)
            results.save()
            console.print(f"{scene.name}: {row}", highlight=False, soft_wrap=True)


def carry_over(results: Results, console: Console) -> None:
    """The second section: one case after the other."""
    for name, case in CASES.items():
        if name not in results.data["carried"]:
            results.data["carried"][name] = found = case()
            results.save()
            console.print(f"{name}: {json.dumps(found)}", highlight=False, soft_wrap=True)


def main(
    out: Annotated[Path, typer.Option(help="results, read and completed")] = RESULTS,
    fresh: Annotated[bool, typer.Option(help="draw everything again")] = False,
    scenes: Annotated[bool, typer.Option(help="draw plans of all costs")] = True,
    steps: Annotated[int | None, typer.Option(help="of these scenes only those of so many steps")] = None,
    carried: Annotated[bool, typer.Option(help="use plans for what they were not made for")] = True,
    page: Annotated[bool, typer.Option(help="write the section of docs/tune.md and its picture")] = True,
) -> None:
    """Draws what is missing and writes the section."""
    for name in ("dit_compile", "diffusers", "transformers", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # models of one class
    console = Console()
    results = Results(out, fresh=fresh)
    if scenes:
        draw_scenes(results, console, [scene for scene in HELD_OUT if steps in (None, scene.steps)])
    if carried:
        carry_over(results, console)
    results.save()
    if page:
        known = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        PAGE.write_text(with_section(known, results.data), encoding="utf-8")
        save_plot(results.data["scenes"], PLOT)
        console.print(f"wrote {PAGE} and {PLOT}")


if __name__ == "__main__":
    typer.run(main)
