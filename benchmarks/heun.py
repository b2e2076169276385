"""Forecasts under Heun's solver, which evaluates the model twice at each time.

Bundled model, guidance 2, PSNR against the uncached model: plain reuse of the newest snapshot, and the default forecast
with several ``DAMPING`` (1: not damped). All other settings are the defaults.

    python benchmarks/heun.py --out benchmarks/results/heun_cpu.json
"""

from __future__ import annotations

import itertools
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
from dit_compile.forecast import checked

DAMPINGS = (0.4, 0.5, 0.6, 0.8, 1.0)
GUIDANCE = 2.0


def heun(model: Model, subject: str, seed: int, steps: int) -> Tensor:
    """The latents of a picture; Karras et al. 2022, algorithm 1, without noise, for a flow model."""
    prompts = [prompt(text) for text in (subject, "")]
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    x = noise(seed)

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        calls = (model(hidden_states=latents, timestep=sigma.reshape(1), **one)[0] for one in prompts)
        with_prompt, without = calls
        return without + GUIDANCE * (with_prompt - without)

    for now, then in itertools.pairwise(sigmas):
        slope = velocity(x, now)
        guess = x + (then - now) * slope
        x = guess if then == 0 else x + (then - now) * (slope + velocity(guess, then)) / 2
    return x


@torch.no_grad()
def main(
    pictures: Annotated[int, typer.Option(min=1, help="pictures per row")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Prints for 10 to 20 steps of Heun the mean PSNR, and in brackets the smallest gain over reuse of any picture."""
    plain, cached = plain_and_cached()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for steps in track((10, 12, 14, 20), description="steps"):
        found: dict[str, list[float]] = {}
        for seed, subject in enumerate(subjects(pictures)):
            wanted = heun(plain, subject, seed, steps)
            for damping in (None, *DAMPINGS):
                settings = {"forecast": "reuse"} if damping is None else {}
                with patch.object(checked, "DAMPING", damping or 1.0), dit_compile.session("heun", **settings):
                    got = heun(cached, subject, seed, steps)
                found.setdefault("reuse" if damping is None else f"{damping:g}", []).append(latents_psnr(wanted, got))
        rows[str(steps)] = {
            name: {"mean": sum(values) / pictures, "least_gain": min(map(float.__sub__, values, found["reuse"]))}
            for name, values in found.items()
        }

    table = Table("steps", *rows["10"], title=f"PSNR in dB, {pictures} pictures; columns: DAMPING")
    for name, cells in rows.items():
        table.add_row(name, *(f"{cell['mean']:.1f} ({cell['least_gain']:+.1f})" for cell in cells.values()))
    Console().print(table)
    write_result(out, pictures=pictures, chosen=checked.DAMPING, psnr=rows)


if __name__ == "__main__":
    typer.run(main)
