"""The summary table, and what happens when a generation ends."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..readers import format_bytes
from ..runtime.stats import GenerationStats, StepStats
from .hints import OneStepGenerations, zero_hit_hint

log = logging.getLogger("dit_compile")

REASONS = {
    "hit": "reused",
    "no_snapshot": "nothing to reuse yet",
    "warmup": "warm-up",
    "mask": "the step mask says compute",
    "mask_end": "behind the end of the step mask",
    "interval": "the interval is over",
    "plan": "the plan computes it",
    "plan_mismatch": "the run is not as planned",
    "out_of_family": "its difference is far from those that the plan was made with",
    "cached_limit": "max_cached_steps reached",
    "consecutive_limit": "max_continuous_cached_steps reached",
    "accumulated_limit": "max_accumulated_diff reached",
    "other_half": "the other half of the chain is skipped",
    "threshold_off": "the threshold is 0",
    "threshold": "the probe changed too much",
    "kept": "keep_blocks names the block",
    "not_measured": "no difference has been measured yet",
    "not_arrived": "what the last step has measured was not there yet, and decision=lagged does not wait",
    "input_changed": "an input besides the latents changed too much",
    "absent": "its branch missed a step",
    "memory_cap": "max_bytes leaves no room for a snapshot",
    "shape_changed": "shape, dtype or device changed",
    "policy_error": "the policy failed, see the log",
    "forecaster_error": "the forecaster failed, see the log",
    "non_finite": "NaN or infinity in the probe or in what would be reused",
    "disabled": "the cache is switched off",
}


_one_step = OneStepGenerations()
MOST_LINES = 8  # regions, or groups of rows, that the table lists one by one


def print_summary(generations: Sequence[GenerationStats], console: Console | None = None) -> None:
    """Prints the newest generation of every module and session in ``generations``."""
    console = console or Console()
    newest = {(stats.module, stats.session): stats for stats in generations}
    if not newest:
        console.print(
            "dit_cache has not run yet. Compile the whole transformer with "
            'torch.compile(model, backend="dit_cache"), call it under torch.no_grad(), '
            'and look for a warning if this stays so (logging.getLogger("dit_compile")).'
        )
    for stats in newest.values():
        _print_one(stats, console)


def _print_one(stats: GenerationStats, console: Console) -> None:
    table = Table(title=f"{stats.module}, session {stats.session}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("branch", "region", "rows", "decisions", "reused"):
        table.add_column(heading, justify="right")
    for heading in ("reused at", "diff min / median / max"):
        table.add_column(heading)
    for (branch, region, rows), steps in _lines(stats.steps).items():
        hits = [step.index for step in steps if step.action == "reuse"]
        share = f"{len(hits)} ({len(hits) / len(steps):.0%})"
        table.add_row(branch, region, rows, str(len(steps)), share, ranges(sorted(set(hits))), _diffs(steps))
    console.print(table)
    lines = [
        f"settings   {stats.config.describe()}",
        f"computed   {_why(stats.steps)}",
        f"saved      {_saved(stats)}; snapshots and probes hold {format_bytes(stats.bytes_held)}",
        *([f"memory     {_capped(stats)}"] if stats.capped else []),
        f"host       waited {stats.host_reads} times for a number; {stats.clock}",
        *([f"plan       {stats.plan}"] if stats.plan else []),
        *([f"CUDA       graphs for {stats.cuda_graphs}"] if stats.cuda_graphs else []),
    ]
    hint = zero_hit_hint(stats)
    console.print("\n".join([*lines, *([f"hint       {hint}"] if hint else [])]), highlight=False, markup=False)


def _lines(steps: Sequence[StepStats]) -> dict[tuple[str, str, str], list[StepStats]]:
    """The decisions behind each line of the table; many regions or rows share one."""
    regions, groups = ({step.region for step in steps}, {step.rows for step in steps})
    lines: dict[tuple[str, str, str], list[StepStats]] = {}
    for step in sorted(steps, key=lambda step: (step.branch, step.region, step.rows, step.index)):
        region = str(step.region) if len(regions) <= MOST_LINES else f"all {len(regions)}"
        rows = "all" if len(groups) == 1 else str(step.rows) if len(groups) <= MOST_LINES else f"{len(groups)} groups"
        lines.setdefault((str(step.branch), region, rows), []).append(step)
    return lines


def _why(steps: Sequence[StepStats]) -> str:
    """``4 warmup (warm-up), 9 threshold (the probe changed too much)``."""
    counts = Counter(step.reason for step in steps if step.action == "compute")
    return ", ".join(f"{n} {code} ({REASONS.get(code, 'policy')})" for code, n in counts.most_common()) or "nothing"


def _saved(stats: GenerationStats) -> str:
    saved = stats.seconds_saved()
    return "not timed: on a GPU summary=1 (DIT_CACHE_SUMMARY=1) does that" if saved is None else f"about {saved:.3g} s"


def _capped(stats: GenerationStats) -> str:
    limit = "taken back" if stats.config.max_bytes is None else format_bytes(stats.config.max_bytes)
    return (
        f"max_bytes = {limit}: {stats.capped} computed steps kept fewer snapshots than the forecast weighs; all "
        f"sessions would take {format_bytes(stats.bytes_wanted)}"
    )


def _diffs(steps: Sequence[StepStats]) -> str:
    diffs = sorted(step.diff for step in steps if step.diff is not None)
    return f"{diffs[0]:.4f} / {diffs[len(diffs) // 2]:.4f} / {diffs[-1]:.4f}" if diffs else "-"


def ranges(numbers: Sequence[int]) -> str:
    """``[4, 5, 6, 9]`` -> ``4-6 9``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return " ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts) or "-"


def report_end(stats: GenerationStats) -> None:
    """Called when a generation ends: warns when it was never cached, prints the summary if settings ask for it."""
    if not stats.steps or not stats.hints:
        return
    hint = zero_hit_hint(stats)
    if hint and max(step.index for step in stats.steps) > 0:
        log.warning("dit_cache: %s (%s, session %s)", hint, stats.module, stats.session)
    _one_step.see(stats)
    if stats.config.summary:
        print_summary([stats])
