"""``dit-compile tune``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..config import ConfigError
from .checks import (
    INNER,
    check_choice,
    check_environment,
    check_picture,
    check_steps,
    check_writable,
    checked_device,
    fail,
    quiet_libraries,
    write_figures,
)  # fmt: skip
from .plan import loaded, write_picture
from .prompts import read_prompts
from .script import draw_and_model, split_script

if TYPE_CHECKING:
    from ..plans import Plan

Made = tuple[Callable[..., Any], Any]


def tune_command(
    script: Annotated[
        str | None,
        typer.Argument(
            metavar="SCRIPT.py:FUNCTION",
            help="A program of yours. The function (by default `make`) returns (draw, model): draw(prompt, seed) draws "
            "a picture, model is the transformer that it calls, or the pipeline that has it. If draw takes steps as "
            "well, fewer steps are compared.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One prompt a line, after a seed and a tab if it has one of its own; # begins a comment. *.json: a "
            "list of texts, and of pairs of a text and a seed. 16 are a good number.",
        ),
    ] = None,
    cost: Annotated[float | None, typer.Option(help="Budget: the share of the blocks that may run, 0 to 1.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget: the seconds that a draw may take.")] = None,
    psnr: Annotated[
        float | None, typer.Option(help="Budget: the decibels that pictures are to have on average.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Plan file to write.", show_default="SCRIPT.plan.json"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps: what draw gets as `steps`.", show_default="draw's own")
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(help="How many prompts judge the plan and have no part in the fit.", show_default="a quarter"),
    ] = None,
    front: Annotated[int, typer.Option(help="First blocks of the model that run at every step.", min=0)] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw steps, weights and PSNR to this file.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write every figure to this file.")
    ] = None,
    inner: Annotated[
        str | None,
        typer.Option(
            help=f"What compiles the graphs: {', '.join(INNER)}.",
            show_default="DIT_CACHE_INNER, else inductor; eager with --demo",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Tune the bundled model; needs no script and no prompts.")
    ] = False,
    guidance: Annotated[float | None, typer.Option(help="With --demo: guidance.", min=1.0, show_default="2")] = None,
    device: Annotated[
        str | None, typer.Option(help="With --demo: where to run.", show_default="cuda if there is one")
    ] = None,
) -> None:
    """Make a plan for your model and a budget: which steps to compute, how to forecast the others.

    Prompts are drawn with every step computed, steps are chosen, weights fitted, and the plan is judged on prompts that
    had no part in that, beside presets, plain reuse and fewer steps. It takes as long as 40 draws, or fewer. Ctrl-C
    while prompts are recorded makes the plan of those that have been.
    """
    check_environment()
    check_choice("--inner", inner, INNER)
    budget = _budget(demo, cost=cost, seconds=seconds, psnr=psnr)
    target = _checked_source(script, prompts, demo, guidance, device)
    if steps is not None:
        check_steps(steps)
    out = Path(f"{'demo' if target is None else target[0].stem}.plan.json") if out is None else out
    check_writable("--out", out)
    check_picture("--picture", picture)
    if picture is not None and find_spec("matplotlib") is None:
        fail('--picture needs matplotlib: pip install "dit-compile[demo]"')
    check_writable("--json", json_path)
    given = None if prompts is None else read_prompts(prompts)
    settings = {} if inner is None else {"inner": inner}
    console = Console()
    if target is None:
        settings = {"inner": "eager", **settings}  # compiling takes longer than it saves here
        (draw, model), own = _of_demo(guidance, device)
        given = own if given is None else given
        check_split(given, held_out)
    else:
        assert given is not None
        check_split(given, held_out)
        draw, model = draw_and_model(*target)
    more: dict[str, Any] = {"held_out": held_out, "front": front, "steps": steps, "console": console}
    plan = _tuned(draw, given, model, {**budget, **more, **settings})
    plan.save(out)
    plan = loaded(out)
    plan.summary(console)
    _say_how_to_use(plan, out, console)
    if picture is not None:
        write_picture(plan, picture, console)
    if json_path is not None:
        facts = {"request": plan.request, "made": plan.made, "figures": plan.figures}
        write_figures(json_path, {"plan": str(out), "digest": plan.digest(), **facts}, console)


def _budget(demo: bool, **budgets: float | None) -> dict[str, float]:
    given = {name: value for name, value in budgets.items() if value is not None}
    if demo and not given:
        return {"cost": 0.36}
    if len(given) != 1:
        names = " and ".join(f"--{name}" for name in given) or "none"
        fail(f"give one of --cost, --seconds and --psnr; got {names}")
    [(name, value)] = given.items()
    if not value > 0 or (name == "cost" and value > 1):
        fail(f"--{name} must be {'a share from 0 to 1' if name == 'cost' else 'positive'}, got {value:g}")
    return given


def _checked_source(
    script: str | None, prompts: Path | None, demo: bool, guidance: float | None, device: str | None
) -> tuple[Path, str] | None:
    """The script and its function; None with --demo."""
    if demo:
        if script is not None:
            fail(f"--demo tunes the bundled model, and {script} another: give one of them")
        return None
    if script is None:
        fail("give a script, SCRIPT.py:make, or --demo")
    for option, value in (("--guidance", guidance), ("--device", device)):
        if value is not None:
            fail(f"{option} goes with --demo; a script sets its own")
    if prompts is None:
        fail("give --prompts FILE: one prompt a line, 16 are a good number")
    return split_script(script)


def check_split(prompts: list[Any], held_out: int | None) -> None:
    """Fails where there are too few prompts, before the model is loaded."""
    from ..tuning.api import split
    from ..tuning.errors import TuneError

    try:
        split(prompts, held_out)
    except TuneError as error:
        fail(str(error))


def _of_demo(guidance: float | None, device: str | None) -> tuple[Made, list[Any]]:
    where = checked_device(device)
    quiet_libraries()
    from ..demo.pipeline import MissingDemoDependency, require_demo_dependencies

    try:
        require_demo_dependencies()
    except MissingDemoDependency as error:
        fail(str(error))
    from ..demo.tuning import GUIDANCE, PROMPTS, make

    return make(GUIDANCE if guidance is None else guidance, where), list(PROMPTS)


def _tuned(draw: Callable[..., Any], prompts: list[Any], model: Any, options: dict[str, Any]) -> Plan:
    from ..tuning.api import tune
    from ..tuning.errors import TuneError

    try:
        return tune(draw, prompts, model=model, **options)
    except (TuneError, ConfigError) as error:
        fail(str(error))


def _say_how_to_use(plan: Plan, out: Path, console: Console) -> None:
    name = escape(str(out))
    lines = [f"plan     {name}"]
    if plan.figures.get("recommended"):
        lines.append(f'use it   dit_compile.compile(pipe, plan="{name}"), or DIT_CACHE_PLAN={name}')
    else:
        lines.append("         It is written all the same, but a preset is the better choice here.")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
