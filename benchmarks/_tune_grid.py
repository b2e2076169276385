"""What benchmarks/tune.py tunes for and judges by, as data."""

from __future__ import annotations

from dataclasses import dataclass

from quality_grid import PROMPTS

from dit_compile.tuning.drawing import Prompt

_OTHERS = ("rocket on green", "strawberry", "blue car on pink", "moon")
TUNED_ON = [Prompt(text, 100 + i) for i, text in enumerate((*PROMPTS["choosing"], *_OTHERS))]
"""None of these prompts and seeds draws a picture that judges."""
JUDGES = [Prompt(text, i) for i, text in enumerate(PROMPTS["held out"])]
"""The prompts and seeds of docs/quality.md that chose no preset."""

COSTS = {28: (8, 10, 11.5, 13.3, 15, 17), 50: (14, 18, 22, 28)}
"""Full steps that a plan may cost, for each number of steps."""
CARRIED = 11.5 / 28
"""Share of the blocks that the plans of the second section may run."""
SIZES = (24, 40)
GUIDANCE = (1.5, 2.5, 3.0)


@dataclass(frozen=True)
class Setup:
    """What the model is drawn with: ``numbers`` are "float32", "bfloat16" or "int8" (weights and activations of its
    linear layers), ``size`` is that of a picture, in pixels."""

    steps: int = 28
    guidance: float = 2.0
    numbers: str = "float32"
    size: int = 32

    @property
    def name(self) -> str:
        return f"{self.steps} steps, guidance {self.guidance:g}"
