"""What snapshots cost in memory, and what fewer bits (``snapshot_dtype``) or a cap (``max_bytes``) cost in quality.

The bundled model draws twelve pictures with the default preset, as one batch with guidance 2 in 28 steps. PSNR is
against the same pictures with every step computed. The caps are shares of what the preset takes, so that a change of
preset needs no change here. About two minutes on one core:

    python benchmarks/memory.py
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from quality_grid import PROMPTS
from rich.console import Console
from rich.table import Table

import dit_compile
from dit_compile.config import CacheConfig
from dit_compile.demo.codec import decode_float
from dit_compile.demo.pipeline import generate, load_pipeline, wrap_transformer
from dit_compile.demo.result import Pictures, psnr
from dit_compile.readers import format_bytes

RESULTS = Path(__file__).parent / "results"
STEPS = 28
SETTINGS = ("model", "bfloat16", "float8")
CAPS = (0.75, 0.55, 0.25)  # of what snapshots and probes take without a cap


def draw(pipe: Any) -> Pictures:
    """The pictures (12, 32, 32, 3) in [-1, 1]."""
    prompts = PROMPTS["held out"]
    with torch.no_grad():
        return decode_float(generate(pipe, prompts, range(len(prompts)), STEPS, true_cfg_scale=2.0).float().cpu())


def measure(pipe: Any, reference: Pictures, **settings: Any) -> dict[str, Any]:
    """One row: settings, what was held, and how far the pictures are from the reference."""
    dit_compile.reset()
    dit_compile.configure(**{"snapshot_dtype": None, "max_bytes": None, **settings})
    distances = psnr(reference, draw(pipe))
    stats = dit_compile.stats(pipe.transformer)[-1]
    reasons = Counter(step.reason for step in stats.steps)
    return {
        **settings,
        "bytes_held": stats.bytes_held,
        "reused": stats.reused,
        "computed": stats.computed,
        "memory_cap": reasons["memory_cap"],
        "psnr": [distance if math.isfinite(distance) else None for distance in distances],  # None: identical
        "median_psnr": median if math.isfinite(median := statistics.median(distances)) else None,
    }


def study(device: str, dtype: torch.dtype, inner: str) -> list[dict[str, Any]]:
    """All rows for the model in ``dtype``."""
    plain = load_pipeline(device)
    plain.transformer.to(dtype)
    reference = draw(plain)
    cached = wrap_transformer(torch.compile(plain.transformer, backend="dit_cache", options={"inner": inner}))
    rows = [measure(cached, reference, snapshot_dtype=setting) for setting in SETTINGS]
    whole = rows[0]["bytes_held"]
    rows += [measure(cached, reference, max_bytes=round(share * whole)) for share in CAPS]
    rows.append(measure(cached, reference, snapshot_dtype="float8", max_bytes=round(CAPS[1] * whole)))
    for row in rows:
        row["share"] = row["bytes_held"] / whole
    return rows


def print_rows(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("snapshot_dtype", "max_bytes", "held", "of all", "reused", "PSNR median (worst)", title=title)
    for row in rows:
        cap = row.get("max_bytes")
        table.add_row(
            row.get("snapshot_dtype", "model"),
            "-" if cap is None else format_bytes(cap),
            format_bytes(row["bytes_held"]),
            f"{row['share']:.0%}",
            f"{row['reused']} of {row['reused'] + row['computed']}",
            "identical" if row["median_psnr"] is None else f"{row['median_psnr']:.1f} dB ({min(row['psnr']):.1f})",
        )
    console.print(table)


def main(
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    inner: Annotated[str, typer.Option(help="What compiles the pieces.")] = "eager",
    dtype: Annotated[str, typer.Option(help="The model's; bfloat16 is slow on most CPUs.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes: results/memory_cpu.json.")] = None,
) -> None:
    """Draws, prints a table, writes one JSON."""
    torch.set_num_threads(1)
    console = Console()
    on_cpu = torch.device(device).type == "cpu"
    rows = study(device, getattr(torch, dtype), inner)
    print_rows(console, f"bundled model in {dtype}, {CacheConfig().describe()}", rows)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "device": f"{platform.machine()} CPU, one thread" if on_cpu else torch.cuda.get_device_name(device),
        "settings": CacheConfig().describe(),
        "pictures": len(PROMPTS["held out"]),
        "steps": STEPS,
        "guidance": 2.0,
        "dtype": dtype,
        "rows": rows,
    }
    path = out or RESULTS / f"memory_{torch.device(device).type}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
