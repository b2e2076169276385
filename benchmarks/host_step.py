"""What a step costs the host, beside other caches: FLUX with 12 and with 57 blocks, computed and cached steps.

Compiled code is replaced by stand-ins that return recorded outputs, so that only the host is measured, in CPU time of
the thread: from the end of one step of the pipeline to the end of the next ("called", Dynamo's guards, scheduler and
pipeline included) and inside the callable that Dynamo calls. A second table has the single parts of that callable.

    python benchmarks/host_step.py --out benchmarks/results/host_step_cpu.json
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _bundled import write_result
from _host_models import (
    CACHE_DIT,
    ENTRIES,
    FIRST_BLOCK_CACHE,
    SIZES,
    cache_dit_version,
    first_block_cache,
    this_package,
)
from _host_parts import parts
from rich.console import Console
from rich.table import Column, Table

GOALS = {"computed": 2.5, "cached": 0.8}  # milliseconds as called, 57 blocks


def contestants(blocks: int, repeats: int, entries: list[str], folder: Path, console: Console) -> dict[str, Any]:
    """Figures by name; a peer that is not to be had is left out, with a line that says why."""
    found: dict[str, Any] = {f"dit_cache, {entry}": this_package(blocks, repeats, entry) for entry in entries}
    for version in CACHE_DIT:
        try:
            found[f"cache-dit {version}"] = cache_dit_version(version, folder / version, blocks, repeats)
        except Exception as problem:
            console.print(f"cache-dit {version} left out: {problem}")
    found[FIRST_BLOCK_CACHE] = first_block_cache(blocks, repeats)
    return found


def step_table(sizes: dict[int, dict[str, Any]]) -> Table:
    table = Table("blocks", Column("cache", no_wrap=True), "step", "called ms", "10th %", "inside ms", "goal ms")
    for blocks, found in sizes.items():
        for name, figures in found.items():
            for kind, one in figures.items():
                inside = f"{one['inside_median_ms']:.3f}" if one["inside_median_ms"] else ""
                goal = f"{GOALS[kind]}" if inside and blocks == max(SIZES) else ""
                called = (f"{one['called_median_ms']:.2f}", f"{one['called_p10_ms']:.2f}")
                table.add_row(str(blocks), name, kind, *called, inside, goal)
    return table


def part_table(measured: dict[str, float]) -> Table:
    table = Table("part of a step", "best us")
    for name, microseconds in measured.items():
        table.add_row(name, f"{microseconds:.2f}")
    return table


def main(
    out: Annotated[Path | None, typer.Option(help="Write the result here, as JSON.")] = None,
    entry: Annotated[str, typer.Option(help=f"{', '.join(ENTRIES)}, or both")] = "both",
    blocks: Annotated[int, typer.Option(help="12 or 57; 0: both")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="generations of 40 steps")] = 5,
) -> None:
    if entry not in (*ENTRIES, "both"):
        raise typer.BadParameter(f"choose {', '.join(ENTRIES)} or both", param_hint="--entry")
    if blocks not in (0, *SIZES):
        raise typer.BadParameter("choose 12 or 57", param_hint="--blocks")
    torch.set_num_threads(1)
    console = Console()
    load = [os.getloadavg()[0]]
    entries = list(ENTRIES) if entry == "both" else [entry]
    measured = parts()
    console.print(part_table(measured))
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            size: contestants(size, repeats, entries, Path(folder), console) for size in SIZES if blocks in (0, size)
        }
    console.print(step_table(sizes))
    load.append(
        os.getloadavg()[0]
    )  # before and after: milliseconds of a busy machine are up to twice those of an idle one
    write_result(out, load=load, goals_ms=GOALS, steps=sizes, parts_us=measured)


if __name__ == "__main__":
    typer.run(main)
