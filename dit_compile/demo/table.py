"""The demo's figures as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dit_compile.demo.picture import format_psnr

if TYPE_CHECKING:
    from dit_compile.demo.result import Compile, DemoResult

COLUMNS = ("reused", "cost in\nsteps", "first\ncall", "s per\nimage", "speed", "PSNR")


def demo_table(result: DemoResult) -> Table:
    """What was compiled, drawn and reused, and what the same time and cost give without a cache."""
    settings, uncached, cached, reuse = result.settings, result.uncached, result.cached, result.reuse
    count = len(settings.prompts)
    notes = ["Pictures drawn as one batch; medians. PSNR against the first row. The last rows: fewer steps, no cache."]
    if result.compile_plain.from_disk or result.compile_cached.from_disk:
        notes.append("* with code from Inductor's disk cache; --cold measures without it")
    table = Table(
        title=f"{count} picture{'s' * (count != 1)} on {settings.device}, guidance {settings.guidance:g}\n"
        f"{settings.preset}: {settings.config}",
        caption="\n".join(notes),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)

    seconds = uncached.median_seconds
    table.add_row(
        f"{uncached.steps} steps, torch.compile",
        "-",
        str(uncached.steps),
        _first_call(result.compile_plain),
        f"{seconds:.3f}",
        "1.00x",
        "-",
    )
    table.add_row(
        f"{cached.steps} steps, dit_cache",
        f"{reuse.reused:g}/{cached.steps}",
        f"{reuse.cost:.1f}",
        _first_call(result.compile_cached),
        f"{cached.median_seconds:.3f}",
        f"{result.speedup:.2f}x",
        format_psnr(cached.median_psnr),
        style="bold green",
    )
    for name, fewer in result.baselines().items():
        table.add_row(
            f"{fewer.steps} steps, {name}",
            "-",
            str(fewer.steps),
            "",
            f"{fewer.median_seconds:.3f}",
            f"{seconds / fewer.median_seconds:.2f}x",
            format_psnr(fewer.median_psnr),
        )
    return table


def _first_call(compiled: Compile) -> str:
    return f"{compiled.seconds:.1f}s{'*' if compiled.from_disk else ''}"
