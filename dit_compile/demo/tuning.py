"""What ``dit-compile tune --demo`` tunes for: the bundled model, its prompts, and how it draws them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dit_compile.demo.codec import decode_float
from dit_compile.demo.pipeline import generate, load_pipeline

STEPS, GUIDANCE, COST = 28, 2.0, 0.36
PROMPTS = (
    "panda on pink", "rocket", "sunflower on blue", "key on purple", "turtle on orange", "pizza", "crown on red",
    "owl on green", "snowman on gray", "avocado", "robot face on yellow", "earth on black", "taxi", "cactus on pink",
    "gift on blue", "sailboat on purple",
)  # fmt: skip
"""All grounds, and subjects that no figure of docs/quality.md is reported for."""


def make(guidance: float = GUIDANCE, device: str = "cpu") -> tuple[Callable[..., Any], torch.nn.Module]:
    """``draw(prompt, seed, steps)``, which returns a float32 picture (1, 32, 32, 3) in [-1, 1], and the transformer."""
    pipe = load_pipeline(device)

    def draw(prompt: str, seed: int, steps: int = STEPS) -> Any:
        return decode_float(generate(pipe, [prompt], [seed], steps, guidance))

    return draw, pipe.transformer
