"""The arithmetic of benchmarks/quality.py: what a picture cost, which ways are best, what rivals do at equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

Point = tuple[float, float]  # cost, quality
BEST_DB = 100.0  # stands for the infinite PSNR of an identical picture, so that means stay finite


def front(points: Iterable[Point]) -> list[Point]:
    """The Pareto front, cheapest first: the points to which no other is at once as cheap and as good."""
    kept: list[Point] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((cost, quality))
    return kept


def at_cost(points: Iterable[Point], cost: float) -> float | None:
    """What the best of ``points`` reach at ``cost``: straight lines between the points of their front.

    None below the cheapest point. Above the dearest one, that point is still what one would take.
    """
    line = front(points)
    if not line or cost < line[0][0]:
        return None
    for (cheap, low), (dear, high) in pairwise(line):
        if cost <= dear:
            return low + (high - low) * (cost - cheap) / (dear - cheap)
    return line[-1][1]


def choose(candidates: Mapping[str, Point], limits: Mapping[str, float]) -> dict[str, str]:
    """For each limit the candidate of highest quality that costs no more, by name.

    Raises ValueError where no candidate is cheap enough.
    """
    chosen = {}
    for limit, most in limits.items():
        affordable = [name for name, (cost, _) in candidates.items() if cost <= most]
        if not affordable:
            raise ValueError(f"no candidate for {limit!r} costs {most} or less")
        chosen[limit] = max(affordable, key=lambda name: candidates[name][1])
    return chosen


def on_front(points: Mapping[str, Point]) -> list[str]:
    """The names of those that are on the front."""
    best = front(points.values())
    return [name for name, point in points.items() if point in best]


def costs_in_steps(records: Iterable[Any], skipped: Sequence[int], blocks: int, rows: int) -> list[float]:
    """Blocks that ran for each picture of a batch, in units of a step that runs all of them.

    ``records`` are the ``steps`` of a generation's statistics, ``skipped`` the number of blocks that a reused step of
    each region does not run, ``blocks`` the length of the chain. Where the batch decided as one, a record counts for
    all ``rows`` pictures. Branches of guidance are averaged: a full step runs all branches.
    """
    records = list(records)
    branches = len({record.branch for record in records})
    steps = len({record.index for record in records})
    divided = len({record.rows for record in records}) > 1
    saved = [0] * rows
    for record in records:
        if record.action == "reuse":
            for row in [record.rows] if divided else range(rows):
                saved[row] += skipped[record.region]
    return [steps - blocks_saved / blocks / branches for blocks_saved in saved]


def figures(costs: Sequence[float], psnr: Sequence[float], ssim: Sequence[float]) -> dict[str, float]:
    """The figures of one way in one scene: means over the pictures, and the worst PSNR."""
    decibels = [min(value, BEST_DB) for value in psnr]
    return {
        "cost": round(fmean(costs), 3),
        "psnr": round(fmean(decibels), 2),
        "worst_psnr": round(min(decibels), 2),
        "ssim": round(fmean(ssim), 5),
    }
