"""The command line: ``dit-compile demo``, ``tune``, ``plan`` and ``env``, a file for each.

Every command imports what it needs itself, so that ``--help`` answers without loading torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import VERSION
from .demo import demo_command
from .env import env_command
from .plan import plan_command
from .tune import tune_command

app = typer.Typer(
    name="dit-compile",
    help="Step caching for diffusion transformers: a look at what torch.compile(model, backend='dit_cache') does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dit-compile {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options without a command."""


app.command("demo")(demo_command)
app.command("tune")(tune_command)
app.command("plan")(plan_command)
app.command("env")(env_command)
