"""The command line: ``dit-compile demo`` and ``dit-compile env``.

Every command imports what it needs itself, so that ``--help`` answers without loading torch.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from dit_compile.demo.result import DemoResult

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
            help="How much to cache: quality, balanced, fast, ultra, cache-dit or off.",
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
        str, typer.Option(help=f"What compiles the graphs of both runs: {', '.join(INNER)}.")
    ] = "inductor",
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
    if inner not in INNER:
        _fail(f"--inner must be one of {', '.join(INNER)}, got {inner!r}{_did_you_mean(inner, INNER)}")
    _check_preset(preset)
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        _fail(f"--out must end in {', '.join(PICTURE_SUFFIXES)}, got {out}")
    _check_writable("--out", out)
    if json_path is not None:
        _check_writable("--json", json_path)

    _quiet_libraries()
    from dit_compile.demo.pipeline import MissingDemoDependency, known_subjects

    unknown = [prompt for prompt in chosen if prompt.split(" on ")[0] not in known_subjects()]
    console = Console()
    for prompt in unknown:
        near = _did_you_mean(prompt.split(" on ")[0], known_subjects())
        console.print(
            f"[yellow]note:[/] the model was not trained on {escape(repr(prompt))}{escape(near)}", highlight=False
        )

    from dit_compile.demo.picture import save_picture
    from dit_compile.demo.run import DEFAULT_PROMPTS, run_demo

    try:
        result, transformer = run_demo(
            chosen or DEFAULT_PROMPTS,
            steps=steps,
            preset=preset,
            device=_checked_device(device),
            seed=seed,
            guidance=guidance,
            inner=inner,
            cold=cold,
            console=console,
        )
    except (MissingDemoDependency, _config_error()) as error:
        _fail(str(error))
    console.print(demo_table(result))
    save_picture(result, out)
    console.print(f"picture  {escape(str(out))}", highlight=False)
    if json_path is not None:
        json_path.write_text(json.dumps(result.as_data(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        console.print(f"figures  {escape(str(json_path))}", highlight=False)
    console.print()

    import dit_compile

    dit_compile.summary(transformer)


@app.command()
def env() -> None:
    """List every DIT_CACHE_* variable: its value now, where that comes from, its default and its meaning."""
    from dit_compile.config import ConfigError, environment_table

    try:
        rows = environment_table()
    except ConfigError as error:
        _fail(str(error))
    table = Table("variable", "value", "from", "default", "meaning", title="dit_cache settings", title_justify="left")
    for column in table.columns[:4]:
        column.no_wrap = True
    for variable, value, source, default, meaning in rows:
        style = None if source == "default" else "bold green"
        table.add_row(*map(escape, (variable, value, source, default, meaning)), style=style)
    Console().print(table)


def demo_table(result: DemoResult) -> Table:
    """The figures of a demo run: what was compiled, drawn and reused, and what fewer steps would have given."""
    from dit_compile.demo.picture import format_psnr

    settings, uncached, cached, reuse = result.settings, result.uncached, result.cached, result.reuse
    table = Table(
        title=f"{len(settings.prompts)} pictures, {settings.steps} steps, guidance {settings.guidance:g}, "
        f"{settings.preset} ({settings.config}), {settings.device}",
        title_justify="left",
        caption="medians over the prompts; PSNR against the same picture with every step computed",
        caption_justify="left",
    )
    table.add_column("")
    for name in ("steps", "reused", "cost in\nfull steps", "first call", "seconds\nper image", "speed-up", "PSNR"):
        table.add_column(name, justify="right")
    base = uncached.median_seconds

    def first_call(compiled: Any) -> str:
        return f"{compiled.seconds:.1f} s{' *' if compiled.from_disk else ''}"

    table.add_row(
        "torch.compile",
        str(uncached.steps),
        "-",
        str(uncached.steps),
        first_call(result.compile_plain),
        f"{base:.3f}",
        "1.00×",
        "-",
    )
    table.add_row(
        "dit_cache",
        str(cached.steps),
        f"{reuse.median_reused:g}/{cached.steps}",
        f"{reuse.median_cost:.1f}",
        first_call(result.compile_cached),
        f"{cached.median_seconds:.3f}",
        f"{result.speedup:.2f}×",
        format_psnr(cached.median_psnr),
        style="bold green",
    )
    for name, fewer in (("fewer steps, same time", result.same_time), ("fewer steps, same cost", result.same_cost)):
        table.add_row(
            name,
            str(fewer.steps),
            "-",
            str(fewer.steps),
            "",
            f"{fewer.median_seconds:.3f}",
            f"{base / fewer.median_seconds:.2f}×",
            format_psnr(fewer.median_psnr),
        )
    if result.compile_plain.from_disk or result.compile_cached.from_disk:
        table.caption = f"{table.caption}\n* compiled code came from Inductor's disk cache; --cold measures without it"
    return table


def _prompt_list(values: Iterable[str] | None) -> list[str]:
    """Prompts given as repeated options, each possibly several with commas between."""
    given = list(values or ())
    prompts = [part.strip() for value in given for part in value.split(",") if part.strip()]
    if given and not prompts:
        _fail("--prompts has no words in it")
    return prompts


def _config_error() -> type[Exception]:
    from dit_compile.config import ConfigError

    return ConfigError


def _check_preset(preset: str | None) -> None:
    """Reads the settings as the backend will, so that a wrong one is reported before the long work."""
    from dit_compile.config import PRESETS, environment_layer, resolve

    if preset is not None and preset not in PRESETS:
        _fail(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}{_did_you_mean(preset, PRESETS)}")
    try:
        resolve(environment_layer())
    except _config_error() as error:
        _fail(str(error))


def _check_writable(option: str, path: Path) -> None:
    """Fails unless ``path`` can be created or overwritten; creates nothing."""
    target = path if path.exists() else path.absolute().parent
    if path.is_dir():
        _fail(f"{option} {path} is a folder; give a file name")
    if not target.exists():
        _fail(f"{option} {path}: the folder {target} does not exist")
    if not target.is_dir() and target != path:
        _fail(f"{option} {path}: {target} is not a folder")
    if not os.access(target, os.W_OK):
        _fail(f"{option} {path}: no permission to write {'it' if target == path else f'in {target}'}")


def _checked_device(device: str | None) -> str:
    """A device torch can compute on; by default CUDA's, where there is one."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
        if torch.device(device).type == "meta":
            raise RuntimeError("the meta device computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        _fail(f"--device {device!r} cannot be used here: {str(error).splitlines()[0]}")
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
