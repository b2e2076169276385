"""What speed.py makes of its measurements: medians, quartiles and ratios. Nothing here imports torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

WARMUP, IN_A_ROW = 4, 2  # steps computed at first, steps reused in a row

Row = dict[str, Any]


def step_mask(steps: int) -> str:
    """A digit per step: ``WARMUP`` computed steps, then ``IN_A_ROW`` reused ones and a computed one by turns."""
    digits = ("1" if step < WARMUP or (step - WARMUP) % (IN_A_ROW + 1) == IN_A_ROW else "0" for step in range(steps))
    return "".join(digits)


def nearest_threshold(reused: Callable[[float], int], wanted: int, high: float = 2.0, tries: int = 12) -> float:
    """The threshold whose number of reused steps, ``reused(threshold)``, is nearest to ``wanted``: by bisection.

    Of two that are equally near, the first that was tried.
    """
    low, found = 0.0, {}
    for _ in range(tries):
        threshold = (low + high) / 2
        count = found[threshold] = reused(threshold)
        if count == wanted:
            break
        low, high = (threshold, high) if count < wanted else (low, threshold)
    return min(found, key=lambda threshold: abs(found[threshold] - wanted))


def spread(values: Sequence[float]) -> Row:
    """How many there are, their median and quartiles."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return {"count": len(values), "median": statistics.median(values), "quartiles": quartiles}


def start_row(starts: Iterable[Mapping[str, float]]) -> Row:
    """Medians of all figures of some starts."""
    starts = list(starts)
    return {name: statistics.median(start[name] for start in starts) for name in starts[0]}


def steps_row(generations: Sequence[Mapping[str, Any]]) -> Row:
    """Computed steps, cached steps and whole generations: seconds of the clock ("wall") and of the processor ("cpu").

    Each generation has ``computed`` (of each step whether it was), ``steps`` (pairs of wall and CPU seconds),
    ``whole`` (such a pair) and ``peak_bytes``. A generation's whole may come from another run than its steps.
    """
    row: Row = {}
    for name, wanted in (("computed", True), ("cached", False)):
        pairs = [
            pair
            for generation in generations
            for pair, computed in zip(generation["steps"], generation["computed"], strict=True)
            if computed is wanted
        ]
        if pairs:
            row[name] = _wall_and_cpu(pairs)
    row["generation"] = _wall_and_cpu([generation["whole"] for generation in generations])
    row["reused"] = statistics.median(generation["computed"].count(False) for generation in generations)
    row["peak_bytes"] = max(generation["peak_bytes"] for generation in generations)
    return row


def _wall_and_cpu(pairs: Sequence[Sequence[float]]) -> Row:
    return {clock: spread([pair[i] for pair in pairs]) for i, clock in enumerate(("wall", "cpu"))}


def with_ratios(rows: Mapping[str, Row], reference: str) -> dict[str, Row]:
    """The rows, each with ``ratios`` to the reference. A cached step is compared with its computed step."""
    base = rows.get(reference, {})
    result = {}
    for name, row in rows.items():
        ratios: Row = {}
        for start in ("cold", "warm"):
            if start in row and start in base:
                ratios[start] = {
                    clock: row[start][f"first_call_{clock}"] / base[start][f"first_call_{clock}"]
                    for clock in ("wall", "cpu")
                }
        for kind in ("computed", "cached", "generation"):
            against = "computed" if kind == "cached" else kind
            if kind in row and against in base:
                ratios[kind] = {
                    clock: row[kind][clock]["median"] / base[against][clock]["median"] for clock in ("wall", "cpu")
                }
        if "peak_bytes" in row and "peak_bytes" in base:
            ratios["peak_bytes"] = row["peak_bytes"] / base["peak_bytes"]
        result[name] = {**{key: value for key, value in row.items() if key != "ratios"}, "ratios": ratios}
    return result


def finished(row: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to measure."""
    return "generation" in row and "error" not in row
