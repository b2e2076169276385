"""A small pipeline: rectified flow by Euler steps with classifier-free guidance, on a toy transformer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from toys import WIDTH, Prompted, build, latents, timestep_embedding


def prompt_tensor(text: str, width: int = WIDTH) -> Tensor:
    """Two tokens that the spelling determines."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    return torch.randn(1, 2, width, generator=torch.Generator().manual_seed(seed))


class Model(Prompted):
    """Computes in the dtype of its latents."""

    def front(self, x: Tensor, t: Tensor) -> tuple[Any, ...]:
        temb = timestep_embedding(t).to(x.dtype)
        return self.blocks[0](self.embed(x), temb), temb


class Pipeline:
    """``pipe(prompt, seed)`` gives the final latents, shape (1, tokens, 16), as a picture.

    ``update(x, velocity, sigma, next_sigma)`` may replace Euler's step. ``calls`` counts calls of the model.
    """

    def __init__(self, model: nn.Module | None = None, **settings: Any) -> None:
        self.model = build(Model) if model is None else model
        self.steps, self.guidance, self.tokens, self.shift, self.batched = 10, 2.0, 5, 1.0, False
        self.dtype = torch.float32
        self.update: Callable[[Tensor, Tensor, float, float], Tensor] = lambda x, v, now, then: x + (then - now) * v
        self.on_step: Callable[[int, Tensor], Tensor] = lambda step, x: x
        self.calls = 0
        for name, value in settings.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    def sigmas(self, steps: int) -> list[float]:
        even = [1 - i / steps for i in range(steps + 1)]
        return [self.shift * s / (1 + (self.shift - 1) * s) for s in even]

    def velocity(self, x: Tensor, sigma: float, prompts: list[Tensor]) -> Tensor:
        time = torch.tensor([1000 * sigma], dtype=self.dtype)
        if len(prompts) == 1:
            self.calls += 1
            only: Tensor = self.model(x, time, prompts[0])
            return only
        if self.batched:
            self.calls += 1
            cond, uncond = self.model(torch.cat([x, x]), time.repeat(2), torch.cat(prompts)).chunk(2)
        else:
            self.calls += 2
            cond, uncond = [self.model(x, time, prompt) for prompt in prompts]
        guided: Tensor = uncond + self.guidance * (cond - uncond)
        return guided

    def __call__(self, prompt: str, seed: int, steps: int | None = None) -> Tensor:
        with torch.no_grad():
            sigmas = self.sigmas(self.steps if steps is None else steps)
            prompts = [prompt_tensor(prompt).to(self.dtype)]
            if self.guidance != 1:
                prompts.append(prompt_tensor("").to(self.dtype))
            x = latents(1, self.tokens, seed).to(self.dtype)
            for step, (now, then) in enumerate(pairwise(sigmas)):
                x = self.on_step(step, x)
                x = self.update(x, self.velocity(x, now, prompts), now, then)
            return x
