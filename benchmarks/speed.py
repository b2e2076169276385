"""Step caches side by side: cold start, warm start, computed and cached steps, generations and memory.

Eager, torch.compile, regional compile, cache-dit (two versions), diffusers' FirstBlockCache and this package, on the
same model with random weights, the same inputs and the same reused steps. Random weights say nothing about pictures;
quality is measured by quality.py.

    python benchmarks/speed.py                  # both CPU sizes, about 13 minutes on an idle machine with two cores
    python benchmarks/speed.py --size flux --size wan --size sd3 --out gpu.json --image gpu.png        # with a GPU

A cold start is a process with empty compile caches, a warm start one that finds the caches of a cold start; both count
from before the contestant is prepared until the first call returns; of imports, only those of this package count, since
torch loads it while compiling. The processes of the last warm starts then draw generations in turn. A reused step adds
the residual of the last computed one, which all contestants can do. cache-dit 1.0.14 runs one block of each list of
blocks at a cached step, the others one block in all.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _speed_course import Course
from _speed_models import SIZES
from _speed_page import save_plot, table_of
from _speed_sums import finished, step_mask, with_ratios
from _speed_ways import LOADED, ONLY_ON_GPU, REFERENCE, WAYS
from overhead import environment
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import dit_compile

BUSY = 0.5  # load average before the start from which wall times are doubtful


def contestants(device: str, only: list[str], console: Console) -> list[str]:
    """Those that can take part here; of those that cannot, a line says why."""
    names = [name for name in WAYS if (not only or name in only) and (device == "cuda" or name not in ONLY_ON_GPU)]
    if LOADED in names and not hasattr(dit_compile, "load"):
        console.print(f"{LOADED} left out: this version has none")
        names.remove(LOADED)
    return names


def load_file(path: Path | None) -> dict[str, Any]:
    """The sizes in an earlier result."""
    if path is None or not path.exists():
        return {}
    sizes: dict[str, Any] = json.loads(path.read_text())["sizes"]
    return sizes


def compared(sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes with their contestants in order and with ratios."""
    result = {}
    for name, found in sizes.items():
        rows = with_ratios(found["contestants"], REFERENCE)
        result[name] = {**found, "contestants": {one: rows[one] for one in WAYS if one in rows}}
    return result


def save_file(path: Path | None, sizes: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        path.write_text(json.dumps({**environment(), "time": now, "sizes": compared(sizes)}, indent=1) + "\n")


def measure(
    chosen: list[str], names: list[str], sizes: dict[str, Any], out: Path | None, console: Console, **settings: Any
) -> None:
    """Adds the figures of the sizes ``chosen`` to ``sizes``; ``settings`` are those of ``Course``."""
    if (load := os.getloadavg()[0]) > BUSY:
        console.print(f"[yellow]The machine is busy (load {load:.1f}): its wall times are doubtful, see the CPU times")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name in chosen:
            mask = step_mask(SIZES[name].steps)
            found = sizes.setdefault(name, {"contestants": {}})
            missing = [one for one in names if not finished(found["contestants"].get(one, {}))]
            facts = {"title": SIZES[name].title, "steps": len(mask), "mask": mask, "load_before": os.getloadavg()[0]}
            found |= facts | {key: settings[key] for key in ("starts", "repeats", "threads", "device")}
            task = progress.add_task(name)
            course = Course(
                name,
                rows=found["contestants"],
                tell=console.print,
                advance=functools.partial(progress.advance, task),
                save=functools.partial(save_file, out, sizes),
                **settings,
            )
            progress.update(task, total=len(missing) * course.pieces())
            course.run(missing, SIZES[name].together)
            found["load_after"] = os.getloadavg()[0]
            save_file(out, sizes)


def main(
    size: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SIZES)}; default: those of the device")] = None,
    out: Annotated[Path | None, typer.Option(help="write the result to this JSON file, after each contestant")] = None,
    image: Annotated[Path | None, typer.Option(help="write the picture to this PNG file")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    only: Annotated[list[str] | None, typer.Option(help=f"contestants: {'; '.join(WAYS)}. Default: all")] = None,
    resume: Annotated[
        bool, typer.Option(help="keep what --out has already; ratios then compare figures of different times")
    ] = False,
    draw: Annotated[bool, typer.Option(help="measure nothing: table and picture of what --out has")] = False,
    starts: Annotated[int, typer.Option(min=1, help="cold starts, and warm starts, per contestant")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="generations per contestant that count")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0: as they are")] = 1,
    limit: Annotated[float, typer.Option(min=1, help="seconds that a start or a generation may take")] = 900,
    folder: Annotated[Path | None, typer.Option(help="for caches and logs, kept; default: a temporary one")] = None,
) -> None:
    """Prints a table per size; writes JSON and a picture."""
    console = Console(width=None if sys.stdout.isatty() else 150)  # room for the table in a log file
    for name in only or ():
        if name not in WAYS:
            raise typer.BadParameter(f"{name!r} is none of {'; '.join(WAYS)}", param_hint="--only")
    for name in size or ():
        if name not in SIZES:
            raise typer.BadParameter(f"choose from {', '.join(SIZES)}", param_hint="--size")
    sizes = load_file(out) if resume or draw else {}
    if not draw:
        chosen = size or [name for name, one in SIZES.items() if one.device == device]
        names = contestants(device, only or [], console)
        with tempfile.TemporaryDirectory() as temporary:
            measure(
                chosen, names, sizes, out, console, folder=(folder or Path(temporary)).resolve(), device=device,
                starts=starts, repeats=repeats, threads=threads, limit=limit,
            )  # fmt: skip
    for name, found in (results := compared(sizes)).items():
        console.print(table_of(name, found))
    if image is not None:
        save_plot(results, image)
    failed = any("error" in row for found in results.values() for row in found["contestants"].values())
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
