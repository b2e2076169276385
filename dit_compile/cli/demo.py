"""``dit-compile demo``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..config import PRESETS, ConfigError
from .checks import (
    INNER,
    MAX_STEPS,
    MIN_STEPS,
    check_choice,
    check_environment,
    check_picture,
    check_steps,
    check_writable,
    checked_device,
    did_you_mean,
    fail,
    quiet_libraries,
    write_figures,
)  # fmt: skip


def demo_command(
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "-p",
            help="What to draw, repeatable or comma separated: a name the model knows, alone or with a ground, as in "
            "'fox, panda on pink'. Grounds: black, gray, red, orange, yellow, green, blue, purple, pink.",
            show_default="five pictures",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help=f"Denoising steps of each picture, {MIN_STEPS} to {MAX_STEPS}.")] = 28,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"How much to cache: {', '.join(PRESETS)}.",
            show_default="DIT_CACHE_PRESET, else balanced",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...", show_default="cuda if there is one")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise that every picture starts from.", min=0)] = 0,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 turns it off and halves the work.", min=1.0)
    ] = 2.0,
    inner: Annotated[
        str | None,
        typer.Option(
            help=f"What compiles the graphs of both runs: {', '.join(INNER)}.",
            show_default="DIT_CACHE_INNER, else inductor",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Picture to write: uncached, cached, difference, fewer steps.")
    ] = Path("dit_cache_demo.png"),
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write every figure to this file.", metavar="FILE")
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Compile with an empty Inductor disk cache: the times of a first run.")
    ] = False,
) -> None:
    """Draw a few emoji with a small trained FLUX, without the cache and with it, and compare.

    The model comes with the package; nothing is downloaded. Takes two to five minutes on two CPU cores, most of it
    Inductor compiling; a second run finds the compiled code on disk.
    """
    chosen = _prompt_list(prompts)
    check_steps(steps)
    check_choice("--inner", inner, INNER)
    check_choice("--preset", preset, PRESETS)
    check_environment()
    check_picture("--out", out)
    check_writable("--json", json_path)

    where = checked_device(device)
    quiet_libraries()
    from dit_compile.demo.pipeline import MissingDemoDependency, known_subjects

    console = Console()
    subjects = known_subjects()
    for name in (prompt.split(" on ")[0] for prompt in chosen):
        if name not in subjects:
            note = escape(f"the model was not trained on {name!r}{did_you_mean(name, subjects)}")
            console.print(f"[yellow]note:[/] {note}", highlight=False)

    from dit_compile.demo.picture import save_picture
    from dit_compile.demo.run import DEFAULT_PROMPTS, run_demo
    from dit_compile.demo.table import demo_table

    try:
        result, transformer = run_demo(
            chosen or DEFAULT_PROMPTS,
            steps=steps,
            preset=preset,
            device=where,
            seed=seed,
            guidance=guidance,
            inner=inner,
            cold=cold,
            console=console,
        )
    except (MissingDemoDependency, ConfigError) as error:
        fail(str(error))
    console.print(demo_table(result))
    save_picture(result, out)
    console.print(f"picture  {escape(str(out))}", highlight=False)
    if json_path is not None:
        write_figures(json_path, result.as_data(), console)
    console.print()

    import dit_compile

    dit_compile.summary(transformer)


def _prompt_list(values: Iterable[str] | None) -> list[str]:
    """Prompts given as repeated options, each possibly several with commas between."""
    given = list(values or ())
    prompts = [part.strip() for value in given for part in value.split(",") if part.strip()]
    if given and not prompts:
        fail("--prompts has no words in it")
    return prompts
