"""``dit_compile.tune``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..backend import read_options
from ..config import resolve
from ..entry.compile import transformers_of
from ..plans import Cut, Plan
from ..progress import bars_on
from .compiled import compiled_for_tuning
from .drawing import Artist, Prompt
from .errors import TuneError
from .tuner import Tuner

if TYPE_CHECKING:
    from rich.console import Console

FEWEST = 3  # prompts: two to fit, one to judge


def tune(
    draw: Callable[..., Any],
    prompts: Iterable[Any],
    *,
    model: Any,
    cost: float | None = None,
    seconds: float | None = None,
    psnr: float | None = None,
    quality: float | None = None,
    metric: Callable[[Any, Any], float] | None = None,
    steps: int | None = None,
    held_out: int | None = None,
    front: int = 0,
    back: int = 0,
    snapshots: int = 4,
    console: Console | None = None,
    **settings: Any,
) -> Plan:
    """Makes a plan for ``model``: which steps to compute, and with which weights to forecast the others.

    A plan is for what ``draw`` does: one model with its weights and adapters, one number of steps, resolution, guidance
    and solver. Draws with every step computed are recorded; steps are chosen by dynamic programming; weights are fitted
    on cached draws; the plan is judged on prompts that had no part in that. With 16 prompts this takes as long as 40
    draws, or fewer. Ctrl-C while it records ends that: the plan is made of what has been recorded.

        plan = dit_compile.tune(draw, prompts, model=pipe.transformer, cost=0.4)
        plan.save("model.plan.json")

    Args:
        draw: ``draw(prompt, seed)`` draws one prompt and returns its picture (PIL's, an array, a tensor, or what a
            pipeline of diffusers returns). The same arguments must give the same picture. Where it takes ``steps``,
            fewer steps are compared as well.
        prompts: what ``draw`` takes, each with its number as the seed, or pairs (prompt, seed). 16 are a good number;
            every fourth is held out from the fit.
        model: the transformer that ``draw`` calls, or the pipeline that has it. It is compiled for the time of tuning,
            with the settings that ``dit_compile.compile`` was given for it, and ``settings``.
        cost: share of the blocks that a generation may run, 0 to 1.
        seconds: what a draw may take.
        psnr: decibels that pictures are to have on average, to those with every step computed.
        quality, metric: what ``metric(reference, picture)`` is to be on average, or more; it gets what ``draw`` returns
            with every step computed, and under the plan. Larger is better: give the negative of a distance (LPIPS).
        steps: what ``draw`` gets as its argument of this name.
        held_out: how many prompts judge; None: a quarter.
        front, back: blocks that always run. With ``front=0`` a forecast step runs none.
        snapshots: the most that a forecast weighs, 2 to 6.
        console: of rich, for progress bars.
        settings: settings of the cache, ``inner="eager"`` for example.

    Raises:
        TuneError: no plan can be made; says why.
        ConfigError: a wrong setting.
    """
    budgets = {"cost": cost, "seconds": seconds, "psnr": psnr, "quality": quality}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise TuneError(f"give one of cost, seconds, psnr and quality; got {', '.join(given) or 'none'}")
    [(name, value)] = given.items()
    if (metric is None) != (name != "quality"):
        raise TuneError("quality= and metric= belong together: metric(reference, picture), larger is better")
    if name != "quality" and (not value > 0 or (name == "cost" and value > 1)):
        raise TuneError(f"{name} must be {'a share from 0 to 1' if name == 'cost' else 'positive'}, got {value}")
    if not 2 <= snapshots <= 6:
        raise TuneError(f"snapshots must be from 2 to 6, got {snapshots}")
    all_prompts = [_prompt(number, one) for number, one in enumerate(prompts)]
    fitted, judges = split(all_prompts, held_out)
    names = [type(module).__name__ for module in transformers_of(model)]
    config = resolve(*read_options(settings)[0])
    with compiled_for_tuning(model, settings), bars_on(console) as bars:
        tuner = Tuner(
            Artist(draw, steps), fitted, judges, cut=Cut(front, back, "chain"), snapshots=snapshots, names=names,
            config=config, bars=bars,
        )  # fmt: skip
        tuner.record()
        if name == "cost":
            parts = tuner.for_cost(value)
        elif name == "seconds":
            parts = tuner.for_seconds(value)
        elif metric is not None:
            parts = tuner.for_quality(value, metric)
        else:
            parts = tuner.for_psnr(value)
        figures = tuner.verify(parts)
    return Plan(tuple(parts), {name: value}, figures, tuner.made())


def _prompt(number: int, given: Any) -> Prompt:
    if isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[1], int):
        return Prompt(given[0], given[1])
    return Prompt(given, number)


def split(prompts: list[Prompt], held_out: int | None) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts for the fit, and those held out from it: every fourth, or ``held_out`` of them.

    Raises:
        TuneError: too few prompts.
    """
    count = max(len(prompts) // 4, 1) if held_out is None else held_out
    if len(prompts) < FEWEST or not 1 <= count <= len(prompts) - 2:
        raise TuneError(
            f"{len(prompts)} prompts, {count} of them held out: at least {FEWEST} are needed, two of them for the fit "
            "and one to judge; 16 are a good number"
        )
    distance = len(prompts) / count
    judges = {int((i + 1) * distance) - 1 for i in range(count)}
    return (
        [prompt for i, prompt in enumerate(prompts) if i not in judges],
        [prompt for i, prompt in enumerate(prompts) if i in judges],
    )
