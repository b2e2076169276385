"""``dit-compile plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..plans import Plan, PlanError
from .checks import check_picture, fail


def plan_command(
    file: Annotated[Path, typer.Argument(help="A plan file, as `dit-compile tune` writes it.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw steps, weights and PSNR to this file.", metavar="FILE.png")
    ] = None,
) -> None:
    """Check a plan file and show what is in it: request, steps, and figures beside those of presets and fewer steps."""
    check_picture("--picture", picture)
    plan = loaded(file)
    console = Console()
    plan.summary(console)
    if picture is not None:
        write_picture(plan, picture, console)


def loaded(file: Path) -> Plan:
    """The plan in ``file``."""
    try:
        return Plan.load(file)
    except PlanError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}")


def write_picture(plan: Plan, path: Path, console: Console) -> None:
    try:
        plan.save_picture(path)
    except ImportError as error:
        fail(str(error))
    console.print(f"picture  {escape(str(path))}", highlight=False)
