"""Which transformers of diffusers are cached, and how their graphs are cut: the table of docs/models.md.

Needs the tests' registry of tiny models (tests/helpers), so it runs from a checkout.

    python benchmarks/coverage.py --out benchmarks/results/coverage.json --write-page
    python benchmarks/coverage.py --only Flux
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import diffusers
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from diffusers_models import LEFT_OUT, MODELS
from examine import Examination, examine
from model_table import HEADINGS, PAGE, page, row


def main(
    only: Annotated[str, typer.Option(help="examine only models whose name contains this")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
    write_page: Annotated[bool, typer.Option(help="write docs/models.md (all models)")] = False,
) -> None:
    """Examines every model and prints one row for each."""
    if only and write_page:
        raise typer.BadParameter("--write-page needs all models: leave out --only")
    logging.getLogger("dit_compile").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    console = Console()
    specs = [spec for spec in MODELS if only.lower() in spec.name.lower()]
    found = {spec.name: examine(spec) for spec in track(specs, "examining", console=console)}
    rows = [row(spec, found[spec.name]) for spec in specs]
    table = Table(*HEADINGS, "computed", "reused", "passes (s)")
    for cells, one in zip(rows, found.values(), strict=True):
        table.add_row(*cells, f"{one.computed_error:.0e}", f"{one.reused_error:.0e}", f"{_seconds(one):.2f}")
    console.print(table)
    console.print(f"{sum(one.report.refusal is None for one in found.values())} of {len(found)} cached")
    if write_page:
        PAGE.write_text(page(diffusers.__version__, rows, LEFT_OUT))
        console.print(f"wrote {PAGE}")
    if out is not None:
        facts = {"torch": torch.__version__, "diffusers": diffusers.__version__, "device": platform.machine()}
        models = {name: asdict(one) for name, one in found.items()}
        out.write_text(json.dumps({**facts, "command": " ".join(sys.argv), "models": models}, indent=1) + "\n")


def _seconds(found: Examination) -> float:
    return sum(found.report.seconds.values())


if __name__ == "__main__":
    typer.run(main)
