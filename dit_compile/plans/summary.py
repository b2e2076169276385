"""What a plan says of itself in a terminal: the request, the steps, and its figures beside those of its rivals."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .part import Part

MARKS = "●◉·"  # computed, computed and corrected, forecast
ASCII_MARKS = "#@."
GROUP, LINE = 10, 50  # steps in a group, and in a line
BUDGETS = {
    "cost": lambda value: f"at most {value:.0%} of the blocks",
    "seconds": lambda value: f"at most {value:g} s a draw",
    "psnr": lambda value: f"at least {value:g} dB on average",
}


def print_summary(
    title: str,
    parts: Sequence[Part],
    request: Mapping[str, Any],
    figures: Mapping[str, Any],
    made: Mapping[str, Any],
    console: Console | None = None,
) -> None:
    """Prints the lines and the table of a plan; the arguments are attributes of ``Plan``."""
    console = console or Console()
    console.print(f"[bold]plan {escape(title)}[/]", highlight=False)
    if not parts:
        return
    marks = ASCII_MARKS if console.options.ascii_only else MARKS
    lines = [("request", requested(request)), ("made", _made(made, figures))]
    for part in parts:
        lines += _of_part(part, marks)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    for name, text in lines:
        if text:
            grid.add_row(name, escape(text))
    console.print(grid, highlight=False)
    if "plan" in figures:
        console.print(figures_table(figures, sum(part.conditions.steps for part in parts)))
    if "recommended" in figures:
        console.print(verdict(figures), highlight=False, soft_wrap=True)


def described(title: str, parts: Sequence[Part], *rest: Mapping[str, Any], width: int = 100) -> str:
    """What ``print_summary`` prints, without colours."""
    text = io.StringIO()
    request, figures, made = rest
    console = Console(file=text, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    print_summary(title, parts, request, figures, made, console)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def requested(request: Mapping[str, Any]) -> str:
    """The budget in words."""
    return ", ".join(
        f"{name} {value}: {BUDGETS[name](value)}" if name in BUDGETS else f"{name} {value}"
        for name, value in request.items()
    )


def verdict(figures: Mapping[str, Any]) -> str:
    """Whether the plan is recommended, and why, with markup."""
    note = escape(str(figures.get("note", "")))
    if figures["recommended"]:
        return f"[bold green]recommended[/]: {note}" if note else "[bold green]recommended[/]"
    return f"[bold yellow]not recommended[/]: {note or 'it does not beat the presets'}"


def step_lines(part: Part, marks: str = MARKS) -> list[str]:
    """A mark for each step, in groups of ten, fifty in a line behind the number of the first."""
    steps = part.conditions.steps
    row = [marks[2] if step in part.forecasts else marks[step in part.corrections] for step in range(steps)]
    lines = []
    for first in range(0, steps, LINE):
        groups = ["".join(row[at : min(at + GROUP, steps)]) for at in range(first, min(first + LINE, steps), GROUP)]
        lines.append(f"{first:>{len(str(steps))}} {' '.join(groups)}" if steps > LINE else " ".join(groups))
    return lines


def _made(made: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    if not made:
        return ""
    prompts = len(made.get("prompts", ()))
    words = [str(made.get("date", "")).replace("T", " ").partition("+")[0]]
    words += [f"{name} {made[name]}" for name in ("dit_compile", "torch") if name in made]
    words += [f"fitted on {_count(prompts, 'prompt')}"] if prompts else []
    words += [f"judged on {len(figures['held_out'])} others"] if "held_out" in figures else []
    if not all(made.get("in_sequence", ())):
        words.append("weights fitted to what the blocks add (the solver's updates could not be read)")
    return ", ".join(filter(None, words))


def _of_part(part: Part, marks: str) -> Iterable[tuple[str, str]]:
    conditions, steps = part.conditions, part.conditions.steps
    shapes = " and ".join(" x ".join(map(str, shape)) for shape in conditions.shapes)
    calls = sorted(set(conditions.branches))
    branches = f"{' or '.join(map(str, calls))} call{'s' * (calls != [1])} each"
    if conditions.batch_branches > 1:
        branches += ", guidance in one batch"
    always = f"; {part.cut.front} front and {part.cut.back} back blocks always run" if part.cut[:2] != (0, 0) else ""
    done = f"{len(part.computed)} computed, {len(part.forecasts)} without {sum(part.skipped)} of {part.blocks} blocks"
    corrected = f"{len(part.corrections)} of {len(part.computed)}"
    first, *others = step_lines(part, marks)
    return [
        ("model", part.model),
        ("runs", f"{steps} steps, {branches}; latents {shapes}, {conditions.dtype}"),
        ("steps", first),
        *(("", line) for line in others),
        ("", f"{marks[0]} computed  {marks[1]} computed and corrected  {marks[2]} forecast"),
        ("cost", f"{part.cost:.1f} of {steps} steps ({part.cost / steps:.0%} of the blocks): {done}{always}"),
        ("weights", f"of up to {part.snapshots} snapshots; {corrected} computed steps are corrected"),
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def figures_table(figures: Mapping[str, Any], steps: int) -> Table:
    """The plan beside its rivals, on the prompts held out."""
    uncached = figures.get("uncached_seconds")
    rows = [{"name": "every step computed", "cost": steps, "seconds": uncached}, figures["plan"], *figures["others"]]
    held = any(row.get("bytes_held") for row in rows)
    caption = "PSNR to the pictures with every step computed, on prompts that had no part in the fit"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left")
    table.add_column(_count(len(figures.get("held_out", ())), "prompt") + " held out", no_wrap=True)
    for heading in ("cost in\nsteps", "mean\nPSNR", "worst\nPSNR", "s per\ndraw", "speed", *(["memory\nMiB"] * held)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        seconds = row.get("seconds")
        texts = [
            f"{row['cost']:.1f}",
            *(f"{row[name]:.1f}" if name in row else "-" for name in ("psnr", "worst_psnr")),
            f"{seconds:#.3g}" if seconds else "-",
            f"{uncached / seconds:.2f}x" if seconds and uncached else "-",
        ]
        if held:
            texts.append(f"{row['bytes_held'] / 2**20:.3g}" if row.get("bytes_held") else "-")
        table.add_row(row["name"], *texts, style="bold green" if row is figures["plan"] else None)
    return table
