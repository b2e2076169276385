"""docs/images/tune_costs.png: cost against PSNR of plans, presets, cache-dit and fewer steps, one panel a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from _tune_page import PRESETS, rivals
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from quality_grid import FEWER, HELD_OUT, OURS, PEER, Scene
from quality_plot import FAMILIES, LOOK, RIM
from quality_sums import front

PLAN = "plan"
LINES: Mapping[str, Mapping[str, Any]] = {
    PLAN: {"marker": "o", "color": "#1d4ed8", "markersize": 6},
    PRESETS: {**FAMILIES[OURS], "marker": "*", "markersize": 10},
    PEER: FAMILIES[PEER],
    FEWER: FAMILIES[FEWER],
}
LABELS = {PLAN: "plan of dit_compile.tune", PRESETS: "presets", PEER: "cache-dit", FEWER: "fewer steps"}


def save_plot(scenes: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws the four panels."""
    with plt.rc_context(LOOK):
        figure, panels = plt.subplots(2, 2, figsize=(11, 8.6), sharey="row")
        for axes, scene in zip(panels.flat, HELD_OUT, strict=True):
            _panel(axes, scene, scenes.get(scene.name, ()))
        handles = [Line2D([], [], linewidth=1.2, label=LABELS[name], **look) for name, look in LINES.items()]
        figure.legend(handles=handles, loc="upper center", ncols=4, frameon=False)
        figure.subplots_adjust(left=0.065, right=0.985, top=0.915, bottom=0.06, hspace=0.27, wspace=0.06)
        figure.savefig(path, dpi=120, metadata={"Software": None})
        plt.close(figure)


def _panel(axes: Axes, scene: Scene, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(scene.name.partition(", ")[2], loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("cost: blocks executed, in full steps")
    if axes.get_subplotspec().colspan.start == 0:
        axes.set_ylabel("PSNR to the uncached picture (dB)")
    drawn = {PLAN: [(row["cost"], row["psnr"]) for row in rows], **rivals(scene, "psnr")}
    most = max((cost for cost, _ in drawn[PLAN]), default=scene.steps) * 1.15
    for name, places in drawn.items():
        shown = [place for place in places if place[0] <= most]
        if shown:
            axes.plot(*zip(*front(shown), strict=True), color=LINES[name]["color"], linewidth=1.2, alpha=0.8, zorder=2)
            axes.plot(*zip(*shown, strict=True), zorder=4 if name == PLAN else 3, **{**LINES[name], **RIM})
    axes.margins(0.06)
