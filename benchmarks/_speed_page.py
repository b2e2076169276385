"""The table and the picture of speed.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from quality_plot import ACCENT, INK, LOOK, MUTED
from rich.table import Table

Row = Mapping[str, Any]
SOFT = {ACCENT: "#9fd3bd", MUTED: "#c3c9cf"}  # the second bar of a pair
OURS = ("dit_cache", "dit_compile")  # beginnings of names
ROW, MARGINS = 0.42, 0.95  # inches


def table_of(name: str, found: Mapping[str, Any]) -> Table:
    """A row per contestant; in brackets the ratio to torch.compile, of cached steps to its computed step."""
    load = f"load {found['load_before']:.1f} before"
    table = Table(
        "contestant", "cold start s", "CPU s", "warm start s", "CPU s", "computed step ms", "cached step ms", "reused",
        f"{found['steps']} steps s", "peak MiB",
        title=f"{name}: {found['title']}, {found['threads']} thread(s), {load}",
    )  # fmt: skip
    for contestant, row in found["contestants"].items():
        if "error" in row and "cold" not in row:
            table.add_row(contestant, "failed")
            continue
        cells = []
        for phase in ("cold", "warm"):
            start = row.get(phase)
            cells.append(f"{start['first_call_wall']:.1f} {_ratio(row, phase)}" if start else "")
            cells.append(f"{start['first_call_cpu']:.1f}" if start else "")
        for kind in ("computed", "cached"):
            cells.append(f"{1000 * row[kind]['wall']['median']:.1f} {_ratio(row, kind)}" if kind in row else "")
        cells.append(f"{row['reused']:.0f}" if "reused" in row else "failed")
        cells.append(
            f"{row['generation']['wall']['median']:.2f} {_ratio(row, 'generation')}" if "generation" in row else ""
        )
        cells.append(f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else "")
        table.add_row(contestant, *cells)
    errors = [f"{contestant}: {row['error']}" for contestant, row in found["contestants"].items() if "error" in row]
    table.caption = "\n".join(errors) or None
    return table


def _ratio(row: Row, kind: str) -> str:
    ratio = row["ratios"].get(kind)
    return f"({ratio['wall']:.2f})" if ratio else ""


Bar = tuple[float, float, float] | None  # value, lower and upper quartile


def _start(phase: str) -> Callable[[Row], Bar]:
    return lambda row: (row[phase]["first_call_wall"],) * 3 if phase in row else None


def _spread(kind: str, scale: float) -> Callable[[Row], Bar]:
    def bar(row: Row) -> Bar:
        if kind not in row:
            return None
        wall = row[kind]["wall"]
        return scale * wall["median"], scale * wall["quartiles"][0], scale * wall["quartiles"][2]

    return bar


def _peak(row: Row) -> Bar:
    return (row["peak_bytes"] / 2**20,) * 3 if "peak_bytes" in row else None


# title, one bar or two bars per contestant with their names
PANELS: tuple[tuple[str, dict[str, Callable[[Row], Bar]]], ...] = (
    ("First call, s", {"cold": _start("cold"), "warm": _start("warm")}),
    ("Step, ms", {"computed": _spread("computed", 1000), "cached": _spread("cached", 1000)}),
    ("Generation, s", {"": _spread("generation", 1)}),
    ("Peak memory, MiB", {"": _peak}),
)


def save_plot(sizes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A row of panels per size, a line per contestant; quartiles as whiskers."""
    heights = [ROW * len(found["contestants"]) + MARGINS for found in sizes.values()]
    with plt.rc_context({**LOOK, "axes.grid": False}):
        figure = plt.figure(figsize=(15, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(sizes), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, found in zip(parts, sizes.values(), strict=True):
            cores = f"{found['threads']} thread" + "s" * (found["threads"] != 1)
            device = cores if found["device"] == "cpu" else "GPU"
            title = f"{found['title']}: {found['mask'].count('0')} of {found['steps']} steps reused, {device}"
            part.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
            panels = part.subplots(1, len(PANELS), sharey=True, gridspec_kw={"width_ratios": (1.15, 1.15, 1, 1)})
            for axes, (name, bars) in zip(panels, PANELS, strict=True):
                _panel(axes, name, bars, found["contestants"])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


def _panel(axes: Axes, title: str, bars: Mapping[str, Callable[[Row], Bar]], contestants: Mapping[str, Row]) -> None:
    height = 0.76 / len(bars)
    largest = max((bar[2] for row in contestants.values() for of in bars.values() if (bar := of(row))), default=1.0)
    for place, (name, row) in enumerate(contestants.items()):
        colour = ACCENT if name.startswith(OURS) else MUTED
        for number, of in enumerate(bars.values()):
            y = place + (number - (len(bars) - 1) / 2) * height
            bar = of(row)
            if bar is None:
                if number == 0 and "error" in row:
                    axes.text(0.01 * largest, y, "failed", va="center", color="#b42318", fontsize=8.5)
                continue
            value, low, high = bar
            axes.barh(y, value, height * 0.92, color=SOFT[colour] if number else colour)
            if low < high:
                axes.plot((low, high), (y, y), color=INK, linewidth=1)
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            axes.text(max(value, high) + 0.012 * largest, y, f"{value:.{digits}f}", va="center", fontsize=8.5)
    legend = f" (dark: {', light: '.join(bars)})" if len(bars) > 1 else ""
    axes.set_title(title + legend, loc="left", fontsize=10.5)
    axes.set_yticks(range(len(contestants)), list(contestants), color=INK)
    axes.set_ylim(len(contestants) - 0.5, -0.5)
    axes.set_xlim(0, 1.16 * largest)
    axes.tick_params(axis="y", length=0)
