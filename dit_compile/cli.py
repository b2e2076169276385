"""The command line: ``dit-compile demo`` and ``dit-compile env``.

Every command imports what it needs itself, so that ``--help`` answers without loading torch.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dit_compile.config import PRESETS, ConfigError, environment_layer, environment_table, resolve
from dit_compile.plugins import plugin_names

app = typer.Typer(
    name="dit-compile",
    help="Step caching for diffusion transformers: a look at what torch.compile(model, backend='dit_cache') does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

USAGE_ERROR = 2
MIN_STEPS = 4
MAX_STEPS = 1000
INNER = ("inductor", "aot_eager", "eager")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@app.callback()
def _commands() -> None:
    """Keeps the sub-commands' names even while there are few of them."""


@app.command()
def demo(
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
    if not MIN_STEPS <= steps <= MAX_STEPS:
        _fail(f"--steps must be from {MIN_STEPS} to {MAX_STEPS}, got {steps}")
    if inner is not None and inner not in INNER:
        _fail(f"--inner must be one of {', '.join(INNER)}, got {inner!r}{_did_you_mean(inner, INNER)}")
    _check_settings(preset)
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        _fail(f"--out must end in {', '.join(PICTURE_SUFFIXES)}, got {out}")
    _check_writable("--out", out)
    if json_path is not None:
        _check_writable("--json", json_path)

    where = _checked_device(device)
    _quiet_libraries()
    from dit_compile.demo.pipeline import MissingDemoDependency, known_subjects

    console = Console()
    subjects = known_subjects()
    for name in (prompt.split(" on ")[0] for prompt in chosen):
        if name not in subjects:
            note = escape(f"the model was not trained on {name!r}{_did_you_mean(name, subjects)}")
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
        _fail(str(error))
    console.print(demo_table(result))
    save_picture(result, out)
    console.print(f"picture  {escape(str(out))}", highlight=False)
    if json_path is not None:
        data = {"command": " ".join(["dit-compile", *sys.argv[1:]]), **result.as_data()}
        json_path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        console.print(f"figures  {escape(str(json_path))}", highlight=False)
    console.print()

    import dit_compile

    dit_compile.summary(transformer)


@app.command()
def env() -> None:
    """List every DIT_CACHE_* variable: its value now, where that comes from, its default and its meaning."""
    try:
        rows = environment_table(**plugin_names())
    except ConfigError as error:
        _fail(str(error))
    console = Console()
    narrow = console.width < 120  # then the meaning goes below the name
    table = Table("variable", "value", "from", "default", box=SIMPLE_HEAD, title="dit_cache settings")
    for column in table.columns[1:]:
        column.no_wrap = True
    if not narrow:
        table.add_column("meaning")
    for variable, *texts, meaning in rows:
        value, source, default = (text.replace(",", ",\n") if len(text) > 16 else text for text in texts)
        name = f"{variable}\n  [dim]{escape(meaning)}[/]" if narrow else variable
        rest = () if narrow else (escape(meaning),)
        table.add_row(
            name, escape(value), source, escape(default), *rest, style=None if source == "default" else "green"
        )
    console.print(table)


def _prompt_list(values: Iterable[str] | None) -> list[str]:
    """Prompts given as repeated options, each possibly several with commas between."""
    given = list(values or ())
    prompts = [part.strip() for value in given for part in value.split(",") if part.strip()]
    if given and not prompts:
        _fail("--prompts has no words in it")
    return prompts


def _check_settings(preset: str | None) -> None:
    """Reads the settings as the backend will, so that a wrong one is reported before the long work."""
    if preset is not None and preset not in PRESETS:
        _fail(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}{_did_you_mean(preset, PRESETS)}")
    try:
        resolve(environment_layer(**plugin_names()))
    except ConfigError as error:
        _fail(str(error))


def _check_writable(option: str, path: Path) -> None:
    """Fails unless ``path`` can be written, by trying; leaves no file behind."""
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        _fail(f"{option} {path} cannot be written: {error.strerror}")
    if not existed:
        path.unlink()


def _checked_device(device: str | None) -> str:
    """A device torch can compute on; by default CUDA's, where there is one."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        _fail(f"--device must be a device of torch such as cpu, cuda or cuda:1, got {device!r}")
    try:
        if kind == "meta" or torch.zeros(1, device=device).add(1).item() != 1:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        _fail(f"--device {device} cannot be used here: {str(error).splitlines()[0]}")
    return device


def _quiet_libraries() -> None:
    """Silences notices of diffusers' optional dependencies, which have nothing to do with the demo."""
    import logging

    for name in ("transformers", "torchao", "diffusers", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fail(message: str) -> NoReturn:
    """One line on stderr and exit code 2: the call was wrong, not the program."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    raise typer.Exit(USAGE_ERROR)
