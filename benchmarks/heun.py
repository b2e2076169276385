"""Forecasts under Heun's solver, which evaluates the model twice at each time.

Bundled model, guidance 2, PSNR against the uncached model: plain reuse of the newest snapshot, and the default forecast
with several ``DAMPING`` (1: not damped). Decisions are the default's in all columns.

    python benchmarks/heun.py --out benchmarks/results/heun_cpu.json
"""

from __future__ import annotations

import copy
import itertools
import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import dit_compile
from dit_compile.demo import codec
from dit_compile.demo.pipeline import known_subjects, load_pipeline
from dit_compile.demo.result import psnr
from dit_compile.forecast import checked

DAMPINGS = (0.4, 0.5, 0.6, 0.8, 1.0)
GUIDANCE = 2.0


def heun(model: Any, subject: str, seed: int, steps: int) -> Tensor:
    """The latents of a picture; Karras et al. 2022, algorithm 1, without noise, for a flow model."""
    prompts = [codec.encode_prompts([text]) for text in (subject, "")]
    ids = {"img_ids": codec.position_ids(), "txt_ids": torch.zeros(prompts[0][0].shape[1], 3)}
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    x = torch.randn(1, codec.IMAGE_TOKENS, codec.IMAGE_CHANNELS, generator=torch.Generator().manual_seed(seed))

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        with_prompt, without = (
            model(
                hidden_states=latents, timestep=sigma.reshape(1), encoder_hidden_states=embeds,
                pooled_projections=pooled, **ids, return_dict=False,
            )[0]
            for embeds, pooled in prompts
        )  # fmt: skip
        return without + GUIDANCE * (with_prompt - without)

    for now, then in itertools.pairwise(sigmas):
        slope = velocity(x, now)
        guess = x + (then - now) * slope
        x = guess if then == 0 else x + (then - now) * (slope + velocity(guess, then)) / 2
    return x


@torch.no_grad()
def main(
    pictures: Annotated[int, typer.Option(min=1, help="pictures per row, of which the mean is taken")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Prints the PSNR for 10 to 20 steps of Heun."""
    torch.set_num_threads(1)
    model = load_pipeline().transformer
    plain = copy.deepcopy(model)
    cached = torch.compile(model, backend="dit_cache", fullgraph=True, options={"inner": "eager"})
    subjects = known_subjects()[:: len(known_subjects()) // pictures][:pictures]
    rows: dict[str, dict[str, float]] = {}
    for steps in track((10, 12, 14, 20), description="steps"):
        found: dict[str, list[float]] = {}
        for seed, subject in enumerate(subjects):
            wanted = codec.decode_float(heun(plain, subject, seed, steps))
            for damping in (None, *DAMPINGS):
                settings = {"forecast": "reuse"} if damping is None else {}
                with patch.object(checked, "DAMPING", damping or 1.0), dit_compile.session("heun", **settings):
                    got = codec.decode_float(heun(cached, subject, seed, steps))
                found.setdefault("reuse" if damping is None else f"{damping:g}", []).append(psnr(wanted, got)[0])
        rows[str(steps)] = {name: sum(values) / len(values) for name, values in found.items()}

    table = Table("steps", *rows["10"], title=f"PSNR in dB, mean over {pictures} pictures; columns: DAMPING")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.1f}" for value in values.values()))
    Console().print(table)
    if out is not None:
        facts = {"torch": torch.__version__, "device": platform.machine(), "command": " ".join(sys.argv)}
        out.write_text(
            json.dumps({**facts, "pictures": pictures, "chosen": checked.DAMPING, "psnr": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
