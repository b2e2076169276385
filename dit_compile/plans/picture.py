"""A picture of a plan: its steps on a line, the weights of each forecast, and the PSNR of each prompt held out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .part import MOST_SNAPSHOTS, Forecast, Part

INK, MUTED, GRID, ACCENT, PALE = "#1b1f24", "#656d76", "#e6e9ed", "#0a7d4f", "#aab4bd"
LOOK: Mapping[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.edgecolor": "#c9d0d6",
    "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
}  # fmt: skip
AGES = (ACCENT, "#2563eb", "#d97706", "#9333ea", "#db2777", MUTED)  # of a snapshot, newest first
RIVALS = (("D", "#c2410c"), ("^", "#b58900"), ("s", MUTED), ("v", "#2563eb"), ("P", "#9333ea"))
WIDTH = 11.0  # inches, as all lengths here
RIGHT, TOP, BOTTOM, GAP, STRIP_GAP = 0.25, 0.75, 0.6, 1.2, 0.3
STRIP, BARS, LINE = 0.45, 2.1, 0.3  # heights: the line of steps, the weights, one prompt
LETTER = 0.078  # width of one in the name of a prompt
LONGEST = 32  # characters of a prompt


def save_picture(path: Path, title: str, parts: Sequence[Part], figures: Mapping[str, Any]) -> Path:
    """Writes the picture; the arguments are attributes of ``Plan``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError('a picture of a plan needs matplotlib: pip install "dit-compile[demo]"') from error
    with matplotlib.rc_context(LOOK):
        make: Any = importlib.import_module("matplotlib.figure").Figure
        _draw(make, title, parts, figures).savefig(path, dpi=120)
    return path


def _draw(make: Any, title: str, parts: Sequence[Part], figures: Mapping[str, Any]) -> Any:
    """All panels, below one another."""
    prompts = [_short(str(text)) for text, _ in figures.get("held_out", ())] if "plan" in figures else []
    left = 0.55 + LETTER * max(map(len, prompts), default=0)
    panels = [(STRIP, STRIP_GAP), (BARS, GAP)] * len(parts) + [(LINE * len(prompts) + 0.5, GAP)] * bool(prompts)
    total = TOP + sum(height + gap for height, gap in panels) - GAP + BOTTOM
    figure = make(figsize=(WIDTH, total))
    figure.text(1 - RIGHT / WIDTH, 1 - 0.28 / total, title, fontsize=9, color=MUTED, ha="right", va="center")
    axes: list[Any] = []
    at = total - TOP
    for number, (height, gap) in enumerate(panels):
        at -= height
        box = (left / WIDTH, at / total, (WIDTH - left - RIGHT) / WIDTH, height / total)
        is_weights = number % 2 == 1
        axes.append(figure.add_axes(box, sharex=axes[-1] if is_weights else None))
        at -= gap
    for number, part in enumerate(parts):
        _steps(axes[2 * number], part)
        _weights(axes[2 * number + 1], part)
    if prompts:
        _prompts(axes[-1], figures, prompts)
    return figure


def _title(axes: Any, text: str, pad: int) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=pad)


def _steps(axes: Any, part: Part) -> None:
    """The line of steps."""
    kinds = {
        "computed": [step for step in part.computed if step not in part.corrections],
        "computed and corrected": sorted(part.corrections),
        "forecast": sorted(part.forecasts),
    }
    looks: Mapping[str, Mapping[str, Any]] = {
        "computed": {"marker": "s", "color": ACCENT, "markersize": 9},
        "computed and corrected": {"marker": "o", "color": ACCENT, "markersize": 10},
        "forecast": {"marker": "o", "color": "white", "markeredgecolor": PALE, "markersize": 6, "markeredgewidth": 1.4},
    }
    axes.axhline(0, color=PALE, linewidth=1, zorder=1)
    for kind, steps in kinds.items():
        if steps:
            label = f"{kind} ({len(steps)})"
            axes.plot(steps, [0] * len(steps), linestyle="", label=label, zorder=2, **looks[kind])
    _title(axes, f"{part.model}: {part.cost:.1f} of {part.conditions.steps} steps", 26)
    axes.set(ylim=(-1, 1), yticks=[], xlim=(-0.7, part.conditions.steps - 0.3))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(False)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.012, 0.9),
        ncols=3,
        frameon=False,
        handletextpad=0.2,
        fontsize=8.5,
        markerscale=0.8,
    )


def weights_by_age(forecast: Forecast) -> list[tuple[float, float, float]]:
    """Lowest, mean and highest weight over branches, regions and streams, of the newest snapshot first."""
    streams = [stream for branch in forecast.weights for region in branch for stream in region]
    by_source = [list(weights) for weights in zip(*streams, strict=True)]
    return [(min(weights), fmean(weights), max(weights)) for weights in reversed(by_source)]


def _weights(axes: Any, part: Part) -> None:
    """Bars for the weights of each forecast step."""
    found = {step: weights_by_age(forecast) for step, forecast in part.forecasts.items()}
    count = max((len(weights) for weights in found.values()), default=1)
    width = 0.84 / count
    for age in range(min(count, MOST_SNAPSHOTS)):
        bars = [
            (step - 0.42 + (count - age - 0.5) * width, *all_[age]) for step, all_ in found.items() if age < len(all_)
        ]
        if bars:
            places, lows, means, highs = zip(*bars, strict=True)
            name = "newest snapshot" if age == 0 else "1 older" if age == 1 else f"{age}"
            axes.bar(places, means, width * 0.92, color=AGES[age], label=name)
            axes.vlines(places, lows, highs, color=INK, linewidth=0.8, alpha=0.7)
    for step in part.computed:
        axes.axvspan(step - 0.5, step + 0.5, color=ACCENT, alpha=0.07, linewidth=0)
    axes.axhline(0, color="#c9d0d6", linewidth=1)
    axes.set_ylabel("weight")
    axes.set_xlabel(
        "step; bars are means over branches of guidance and streams, lines reach from the lowest to the highest"
    )
    axes.grid(axis="x", visible=False)
    ticks: Any = importlib.import_module("matplotlib.ticker")
    axes.xaxis.set_major_locator(ticks.MaxNLocator(nbins=15, integer=True))
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.005, 0.97), ncols=count, frameon=False, handlelength=1, fontsize=8.5
    )


def _prompts(axes: Any, figures: Mapping[str, Any], prompts: Sequence[str]) -> None:
    """A line for each prompt, a mark for the plan and each rival."""
    plan = figures["plan"]
    rows = range(len(prompts))
    for (marker, colour), rival in zip(RIVALS, figures["others"], strict=False):
        label = f"{rival['name']}, cost {rival['cost']:.1f}: {rival['psnr']:.1f} dB"
        look = {
            "marker": marker,
            "color": colour,
            "markersize": 6.5,
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
        }
        axes.plot(rival["psnr_of_each"], rows, linestyle="", label=label, zorder=3, **look)
        axes.axvline(rival["psnr"], color=colour, linewidth=1, linestyle=":", zorder=1)
    label = f"plan, cost {plan['cost']:.1f}: {plan['psnr']:.1f} dB"
    look = {"marker": "o", "color": ACCENT, "markersize": 9, "markeredgecolor": "white", "markeredgewidth": 0.8}
    axes.plot(plan["psnr_of_each"], rows, linestyle="", label=label, zorder=4, **look)
    axes.axvline(plan["psnr"], color=ACCENT, linewidth=1.2, linestyle=":", zorder=1)
    axes.set_yticks(list(rows), prompts)
    axes.set_ylim(len(prompts) - 0.4, -0.6)
    axes.set_xlabel("PSNR to the picture with every step computed (dB); dotted lines are means")
    _title(axes, "Prompts held out", 10)
    axes.legend(loc="lower right", bbox_to_anchor=(1.005, 1.0), ncols=2, frameon=False, fontsize=8.5)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
