"""The section of docs/tune.md that benchmarks/tune.py writes, between two markers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from _tune_grid import CARRIED, JUDGES, TUNED_ON
from quality_grid import FEWER, HELD_OUT, PEER, Scene
from quality_page import DOCS, chosen, points, table
from quality_sums import Point, at_cost

PAGE, PLOT = DOCS / "tune.md", DOCS / "images" / "tune_costs.png"
BEGIN = "<!-- Written by `python benchmarks/tune.py` from benchmarks/results/tune.json; change those instead. -->"
END = "<!-- End of what benchmarks/tune.py wrote. -->"
PRESETS = "presets"

TEXT = """\
## What carries over

Plans for the bundled model, made from {tuned} prompts, against the presets, cache-dit {cache_dit} and fewer steps. The
{judges} prompts that judge are those of [quality.md](quality.md); no setting, plan or preset was chosen by them.
PSNR is that of float pictures to the ones with every step computed, in dB, as mean · worst picture. Cost is counted
work in full steps. Others are read off at equal cost, on straight lines between their best settings; *none*: nothing of
theirs is as cheap. The model is small and smooth: the order of methods may carry over to a large one, the decibels do
not.

{rows}
![Cost against PSNR in four panels: plans, presets, cache-dit, fewer steps](images/{plot})

{summary}

### Plans used for what they were not made for

A plan is refused where the model, its weights, the steps, the resolution, the guidance or the solver are others (the
guard decides then). What refused plans would have given was measured with their conditions replaced. Each asks for
{share:.0%} of the blocks; {judges} prompts judge.

{carried}
torch {torch}, diffusers {diffusers}, {device}. [All figures](../benchmarks/results/tune.json). `python
benchmarks/tune.py` draws what that file lacks.
"""

TITLES = {
    "prompts and seeds": "**Other prompts and seeds.** One plan, other pictures:",
    "guidance": "**Other guidance.** The run refuses the plan: *{refused}*.",
    "resolution": "**Other resolutions.** The run refuses the plan: *{refused}*.",
    "numbers": "**Other numbers.** bfloat16 weights and latents, and int8 weights with activations that are quantised "
    "dynamically (torchao); each is compared with its own uncached pictures. The run refuses the plan: *{refused}*.",
    "steps": "**Other numbers of steps.** At 50 steps the plan for 28 is refused: *{refused}*. To tune anew costs:",
    "the fit": "**How the plan is made.** One thing changed at a time:",
}


@lru_cache
def quality() -> dict[str, Any]:
    """What benchmarks/quality.py measured."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "results" / "quality.json").read_text())
    return found


def rivals(scene: Scene, what: str) -> dict[str, list[Point]]:
    """Cost and ``what`` ("psnr" or "worst_psnr") of the presets, cache-dit and fewer steps."""
    ways = quality()["ways"]
    names = chosen(ways).values()
    figures = [ways[name]["figures"][scene.name] for name in names]
    return {
        PRESETS: [(one["cost"], one[what]) for one in figures],
        **{family: list(points(ways, scene, family, what).values()) for family in (PEER, FEWER)},
    }


def advantage(scenes: Mapping[str, Sequence[Mapping[str, Any]]], family: str, what: str = "psnr") -> list[float]:
    """By how much each plan is better than ``family`` at its cost, where that has something as cheap."""
    found = []
    for scene in HELD_OUT:
        line = rivals(scene, what)[family]
        for row in scenes.get(scene.name, ()):
            other = at_cost(line, row["cost"])
            if other is not None:
                found.append(row[what] - other)
    return found


def _pair(mean: float | None, worst: float | None) -> str:
    if mean is None:
        return "none"
    return f"{mean:.1f} · {worst:.1f}" if worst is not None else f"{mean:.1f}"


def scene_rows(scenes: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[list[str]]:
    """Every plan beside its rivals."""
    for scene in HELD_OUT:
        means, worst = rivals(scene, "psnr"), rivals(scene, "worst_psnr")
        for row in scenes.get(scene.name, ()):
            cost = row["cost"]
            cells = [_pair(at_cost(means[name], cost), at_cost(worst[name], cost)) for name in (PRESETS, PEER, FEWER)]
            own = _pair(row["psnr"], row["worst_psnr"])
            yield [f"{scene.steps} / {scene.guidance:g}", f"{cost:.1f}", own, *cells]


def summary(scenes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the table says."""
    lines = []
    for family in (PRESETS, PEER):
        mean, worst = advantage(scenes, family), advantage(scenes, family, "worst_psnr")
        lines.append(
            f"Above {'our presets' if family == PRESETS else family} at equal cost: {min(mean):+.1f} to "
            f"{max(mean):+.1f} dB on average over the prompts, {min(worst):+.1f} to {max(worst):+.1f} dB for the worst "
            f"picture, which is worse in {sum(one < 0 for one in worst)} of {len(worst)} comparisons."
        )
    return "\n".join(lines)


def carried(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Each case with its table."""
    parts = []
    for name, title in TITLES.items():
        rows = cases.get(name)
        if not rows:
            continue
        refused = next((row["refused"] for row in rows if row.get("refused")), "")
        if "draws" in rows[0]:
            body = table(
                ["", "draws", "CPU seconds"], [[r["name"], f"{r['draws']}", f"{r['cpu_seconds']:.0f}"] for r in rows]
            )
        else:
            body = table(
                ["", "cost", "PSNR", "worst"],
                [[row["name"], *(f"{row[what]:.1f}" for what in ("cost", "psnr", "worst_psnr"))] for row in rows],
            )
        parts.append(f"{title.format(refused=refused)}\n\n{body}")
    return "\n".join(parts)


def section(data: Mapping[str, Any]) -> str:
    """The section with its markers."""
    scenes = data["scenes"]
    header = ["steps / guidance", "cost", "plan", "presets", "cache-dit", "fewer steps"]
    text = TEXT.format(
        tuned=len(TUNED_ON), judges=len(JUDGES), share=CARRIED, cache_dit=quality()["cache_dit"], plot=PLOT.name,
        rows=table(header, scene_rows(scenes)), summary=summary(scenes), carried=carried(data["carried"]),
        **{name: data[name] for name in ("torch", "diffusers", "device")},
    )  # fmt: skip
    return f"{BEGIN}\n\n{text}\n{END}\n"


def with_section(page: str, data: Mapping[str, Any]) -> str:
    """``page`` with the section in the place of the one it has, or at its end."""
    before, found, rest = page.partition(BEGIN)
    after = rest.partition(f"{END}\n")[2]
    if not found and before:
        before = before.rstrip("\n") + "\n\n"
    return before + section(data) + after
