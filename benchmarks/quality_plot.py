"""docs/images/quality.png: cost against PSNR of everything that drew the prompts held out, one panel per scene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from quality_grid import FEWER, HELD_OUT, OURS, PEER, WHOLE, Scene
from quality_page import chosen, points
from quality_sums import front

INK, MUTED, GRID = "#1b1f24", "#656d76", "#e6e9ed"
ACCENT = "#0a7d4f"
STYLES: Mapping[str, dict[str, Any]] = {
    OURS: {"marker": "o", "color": ACCENT, "markersize": 5, "label": "dit_cache"},
    FEWER: {"marker": "s", "color": "#656d76", "markersize": 4, "label": "fewer steps, no cache"},
    WHOLE: {"marker": "^", "color": "#b58900", "markersize": 5.5, "label": "whole output repeated"},
    PEER: {"marker": "D", "color": "#c2410c", "markersize": 4.5, "label": "cache-dit"},
}

STAR: Mapping[str, Any] = {
    "marker": "*", "markersize": 17, "color": ACCENT, "markeredgecolor": "white", "markeredgewidth": 1
}  # fmt: skip
NAME: Mapping[str, Any] = {"fontsize": 10, "fontweight": "bold", "color": ACCENT}


def save_plot(ways: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws the four panels; presets are stars with their names."""
    settings = {
        "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.edgecolor": "#c9d0d6",
        "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
    }  # fmt: skip
    with plt.rc_context(settings):
        figure, panels = plt.subplots(2, 2, figsize=(11, 8.2), sharey="row")
        for axes, scene in zip(panels.flat, HELD_OUT, strict=True):
            _panel(axes, ways, scene)
        for axes in panels[1]:
            axes.set_xlabel("cost: blocks executed, in full steps")
        for axes in panels[:, 0]:
            axes.set_ylabel("PSNR to the uncached picture (dB)")
        lines = {family: "" if family == WHOLE else "-" for family in STYLES}
        handles = [Line2D([], [], linestyle=lines[family], linewidth=1.2, **style) for family, style in STYLES.items()]
        handles.append(Line2D([], [], linestyle="", label="preset", **{**STAR, "markersize": 15}))
        figure.legend(handles=handles, loc="upper center", ncols=5, frameon=False, bbox_to_anchor=(0.5, 0.995))
        figure.tight_layout(rect=(0, 0, 1, 0.965), h_pad=2)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _panel(axes: Axes, ways: Mapping[str, Mapping[str, Any]], scene: Scene) -> None:
    axes.set_title(f"{scene.steps} steps, guidance {scene.guidance:g}", loc="left", fontsize=11, fontweight="bold")
    for family, style in STYLES.items():
        drawn = list(points(ways, scene, family).values())
        if not drawn:
            continue
        look = {name: value for name, value in style.items() if name != "label"}
        line = front(drawn)
        if family != WHOLE:
            axes.plot(*zip(*line, strict=True), color=style["color"], linewidth=1.2, alpha=0.8, zorder=2)
        axes.plot(*zip(*drawn, strict=True), linestyle="", alpha=0.3, markeredgewidth=0, zorder=2, **look)
        rim = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(*zip(*line, strict=True), linestyle="", zorder=3, **look, **rim)
    for preset, name in chosen(ways).items():
        figures = ways[name]["figures"][scene.name]
        place = (figures["cost"], figures["psnr"])
        axes.plot(*place, zorder=5, **STAR)
        axes.annotate(preset, place, (-9, 7), textcoords="offset points", ha="right", zorder=6, **NAME)
    axes.margins(0.06)
