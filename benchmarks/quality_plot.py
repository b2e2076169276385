"""docs/images/quality.png: cost against PSNR, of the first round above and of the prompts held out below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from quality_grid import FEWER, FORECASTS, HELD_OUT, OURS, PEER, POLICIES, SCREEN, WHOLE, Scene
from quality_page import points, presets_of
from quality_sums import front

INK, MUTED, GRID, ACCENT = "#1b1f24", "#656d76", "#e6e9ed", "#0a7d4f"
LOOK: Mapping[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.edgecolor": "#c9d0d6",
    "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
}  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    OURS: {"marker": "o", "color": ACCENT, "markersize": 5},
    FEWER: {"marker": "s", "color": MUTED, "markersize": 4.5},
    WHOLE: {"marker": "^", "color": "#b58900", "markersize": 6},
    PEER: {"marker": "D", "color": "#c2410c", "markersize": 5},
}
LABELS = {OURS: "dit_cache", FEWER: "fewer steps, no cache", WHOLE: "whole output repeated", PEER: "cache-dit"}
MARKERS = dict(zip(POLICIES, ("o", "h", "|", "_", "v", "<", ">", "P", "X", "D", "p"), strict=True))
_HUES = (
    "#8a939c", "#2563eb", "#60a5fa", "#9333ea", "#db2777", ACCENT, "#d97706", "#1b1f24", "#a16207", "#dc2626",
    "#fb7185",
)  # fmt: skip
COLOURS = dict(zip(FORECASTS, _HUES, strict=True))
STAR: Mapping[str, Any] = {
    "marker": "*", "markersize": 17, "color": ACCENT, "markeredgecolor": "white", "markeredgewidth": 1, "linestyle": ""
}  # fmt: skip
RIM: Mapping[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": ""}


def save_plot(data: Mapping[str, Any], path: Path) -> None:
    """Draws all panels of results; presets are stars with their names."""
    ways, presets = data["ways"], presets_of(data)
    with plt.rc_context(LOOK):
        figure = plt.figure(figsize=(11, 13))
        grid = figure.add_gridspec(
            3, 2, height_ratios=(1.15, 1, 1), hspace=0.34, wspace=0.08, left=0.065, right=0.985, top=0.965, bottom=0.045
        )
        _first_round(figure.add_subplot(grid[0, :]), ways, len(SCREEN.of(data["prompts"])))
        left: dict[int, Axes] = {}
        for i, scene in enumerate(HELD_OUT):
            row, column = divmod(i, 2)
            axes = figure.add_subplot(grid[1 + row, column], sharey=left.get(row))
            left.setdefault(row, axes)
            _held_out(axes, ways, presets, scene)
        lines = {family: "" if family == WHOLE else "-" for family in FAMILIES}
        handles = [
            Line2D([], [], linewidth=1.2, label=LABELS[family], **look, linestyle=lines[family])
            for family, look in FAMILIES.items()
        ]
        handles.append(Line2D([], [], label="preset", **{**STAR, "markersize": 14}))
        figure.legend(handles=handles, loc="center", ncols=5, frameon=False, bbox_to_anchor=(0.525, 0.644))
        figure.savefig(path, dpi=120, metadata={"Software": None})
        plt.close(figure)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("cost: blocks executed, in full steps")
    if axes.get_subplotspec().colspan.start == 0:
        axes.set_ylabel("PSNR to the uncached picture (dB)")


def _first_round(axes: Axes, ways: Mapping[str, Mapping[str, Any]], prompts: int) -> None:
    """Every policy with every forecaster: the marker is the policy, the colour the forecaster."""
    ours, fewer = points(ways, SCREEN, OURS), points(ways, SCREEN, FEWER)
    _title(axes, f"Every policy with every forecaster: {prompts} prompts, {SCREEN.name.partition(', ')[2]}")
    axes.plot(*zip(*front(fewer.values()), strict=True), linewidth=1.2, **FAMILIES[FEWER])
    axes.plot(*zip(*front(ours.values()), strict=True), color=ACCENT, linewidth=1.2, alpha=0.5)
    for name, place in ours.items():
        marker = MARKERS[ways[name]["settings"]["policy"]]
        look = {"markersize": 10, "markeredgewidth": 2} if marker in "|_" else {"markersize": 7, **RIM}
        axes.plot(*place, marker=marker, color=COLOURS[name.rpartition(" ")[2]], alpha=0.9, **look)
    shape = {"linestyle": "", "color": INK, "markersize": 7}
    policies = [
        Line2D([], [], marker=marker, markeredgewidth=2 if marker in "|_" else 0, label=policy, **shape)
        for policy, marker in MARKERS.items()
    ]
    forecasts = [Line2D([], [], linestyle="", marker="o", color=colour, label=name) for name, colour in COLOURS.items()]
    forecasts.append(Line2D([], [], label="fewer steps", **FAMILIES[FEWER]))
    low = min(cost for cost, _ in fewer.values())
    axes.set_xlim(low - 0.5, 32)  # room for the legends
    legend = {"frameon": False, "loc": "upper right", "fontsize": 9}
    axes.add_artist(axes.legend(handles=policies, title="policy", bbox_to_anchor=(0.81, 1), **legend))
    axes.legend(handles=forecasts, title="forecaster", bbox_to_anchor=(1, 1), **legend)


def _held_out(axes: Axes, ways: Mapping[str, Mapping[str, Any]], presets: Mapping[str, str], scene: Scene) -> None:
    """Presets and rivals on the prompts held out, each with the line of its front."""
    _title(axes, scene.name.partition(", ")[2])
    for family, look in FAMILIES.items():
        drawn = list(points(ways, scene, family).values())
        if drawn:
            line = front(drawn)
            if family != WHOLE:
                axes.plot(*zip(*line, strict=True), color=look["color"], linewidth=1.2, alpha=0.8, zorder=2)
            axes.plot(*zip(*drawn, strict=True), zorder=3, **{**look, **RIM})
    for preset, name in presets.items():
        figures = ways[name]["figures"].get(scene.name)
        if figures is None:  # only the first round was drawn
            continue
        place = (figures["cost"], figures["psnr"])
        axes.plot(*place, zorder=5, **STAR)
        axes.annotate(
            preset, place, (-9, 6), textcoords="offset points", ha="right", fontweight="bold", color=ACCENT, zorder=6
        )
    axes.margins(0.07)
