"""What a jump costs: latents that are replaced in the middle of a generation, and a refining pass after a first one.

Bundled model, Euler, PSNR against the uncached model. "kept": snapshots of before the jump stay, as without the rule.
Also counts what the rule takes for jumps in ordinary generations, where there are none.

    python benchmarks/jumps.py --out benchmarks/results/jumps_cpu.json
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from _bundled import Model, latents_psnr, noise, plain_and_cached, prompt, subjects, write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import dit_compile
from dit_compile.demo import codec
from dit_compile.runtime import slots


class Loop:
    """Euler's method of one's own with one prompt, at guidance 1."""

    def __init__(self, subject: str) -> None:
        self.prompt = prompt(subject)

    def run(
        self, model: Model, x: Tensor, sigmas: Tensor, change: Callable[[Tensor, float], Tensor] | None = None
    ) -> Tensor:
        for i in range(len(sigmas) - 1):
            if change is not None and i == len(sigmas) // 2 - 1:
                x = change(x, float(sigmas[i]))
            (velocity,) = model(hidden_states=x, timestep=sigmas[i].reshape(1), **self.prompt)
            x = x + (sigmas[i + 1] - sigmas[i]) * velocity
        return x


def schedule(steps: int, shift: float = 1.0, start: float = 1.0) -> Tensor:
    sigmas = torch.linspace(start, 0.0, steps + 1)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def cases(loop: Loop, plain: Model, seed: int) -> dict[str, Callable[[Model], Tensor]]:
    """Each takes a model and returns the latents of a picture."""
    x, other, finished = noise(seed), noise(seed + 1), loop.run(plain, noise(seed), schedule(20))

    def replaced(_: Tensor, sigma: float) -> Tensor:
        return (1 - sigma) * finished.flip(1) + sigma * other

    def composited(latents: Tensor, sigma: float) -> Tensor:
        half = codec.EMOJI.image_tokens // 2
        return torch.cat([replaced(latents, sigma)[:, :half], latents[:, half:]], 1)

    def refined(model: Model) -> Tensor:
        first = schedule(20, shift=8)
        loop.run(model, x, first)
        second = torch.linspace(0.95 * float(first[-2]), 0.0, 13)
        start = (1 - float(second[0])) * loop.run(plain, x, first) + float(second[0]) * other
        return loop.run(model, start, second)

    return {
        "nothing happens": lambda model: loop.run(model, x, schedule(20)),
        "noise injected": lambda model: loop.run(model, x, schedule(20), lambda y, sigma: y + 0.3 * sigma * other),
        "half composited": lambda model: loop.run(model, x, schedule(20), composited),
        "all replaced": lambda model: loop.run(model, x, schedule(20), replaced),
        "refining pass": refined,
    }


@torch.no_grad()
def main(
    pictures: Annotated[int, typer.Option(min=1, help="pictures of each case, of which the mean is taken")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Prints the PSNR of each case with and without the rule, and how often the rule errs in ordinary generations."""
    plain, cached = plain_and_cached()
    drawn = subjects(pictures)
    found: dict[str, dict[str, list[float]]] = {}
    for seed, subject in enumerate(track(drawn, description="pictures")):
        for name, draw in cases(Loop(subject), plain, 10 * seed).items():
            wanted = draw(plain)
            for rule in ("kept", "ended"):
                dit_compile.reset()
                without_rule = patch.object(slots.Slots, "is_jump", lambda state, diff, since: False)
                with without_rule if rule == "kept" else nullcontext():
                    psnr = latents_psnr(wanted, draw(cached))
                found.setdefault(name, {}).setdefault(rule, []).append(psnr)
    mean = {name: {rule: sum(values) / len(values) for rule, values in rules.items()} for name, rules in found.items()}

    table = Table("", "snapshots kept", "history ended", title="PSNR in dB, mean over pictures")
    for name, rules in mean.items():
        table.add_row(name, f"{rules['kept']:.1f}", f"{rules['ended']:.1f}")
    Console().print(table)
    errors = count_errors(cached, drawn)
    Console().print(f"taken for jumps in ordinary generations: {errors['jumps']} of {errors['steps']} measured steps")
    write_result(out, pictures=pictures, factor=slots.JUMP, psnr=mean, ordinary=errors)


def count_errors(cached: Model, drawn: list[str]) -> dict[str, int]:
    """Jumps that the rule sees in generations of 28 and 50 steps, shifted and not."""
    counts, is_jump = {"steps": 0, "jumps": 0}, slots.Slots.is_jump

    def counting(state: slots.Slots, diff: float, since: int) -> bool:
        jump = is_jump(state, diff, since)
        counts["steps"] += 1
        counts["jumps"] += jump
        return jump

    with patch.object(slots.Slots, "is_jump", counting):
        for preset in ("quality", "balanced", "fast", "ultra"):
            for seed, subject in enumerate(drawn):
                for steps, shift in ((28, 1.0), (50, 1.0), (28, 3.0), (50, 3.0)):
                    with dit_compile.session("ordinary", preset=preset):
                        Loop(subject).run(cached, noise(seed), schedule(steps, shift))
    return counts


if __name__ == "__main__":
    typer.run(main)
