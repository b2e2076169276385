"""A FLUX of random weights, and calls to it that change slowly from step to step as in a denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

BATCH, IMAGE_TOKENS, TEXT_TOKENS = 2, 16, 4
CHANNELS, TEXT_WIDTH, POOLED_WIDTH = 8, 24, 12


def tiny_flux(doubles: int, singles: int, guidance: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=doubles,
        num_single_layers=singles,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Film:
    """A generation to replay: ``paces`` has one positive number per step, how far the clock and the latents move on."""

    paces: tuple[float, ...]
    branches: int = 1
    seed: int = 0

    def calls(self, guidance: bool) -> Iterator[dict[str, Tensor]]:
        """The keyword arguments of each call, branches in turn within a step.

        Latents are one tensor object for all branches of a step, prompts one object per branch for all steps, and the
        timestep a fresh tensor for every call, as in ``FluxPipeline``.
        """
        random = torch.Generator().manual_seed(self.seed)
        start, goal = (torch.randn(BATCH, IMAGE_TOKENS, CHANNELS, generator=random) for _ in range(2))
        prompts = [
            (
                torch.randn(BATCH, TEXT_TOKENS, TEXT_WIDTH, generator=random),
                torch.randn(BATCH, POOLED_WIDTH, generator=random),
            )
            for _ in range(self.branches)
        ]
        txt_ids = torch.zeros(TEXT_TOKENS, 3)
        img_ids = torch.tensor([(0.0, row, column) for row in range(4) for column in range(4)])
        length = sum(self.paces)
        for step in range(len(self.paces)):
            gone = torch.tensor(sum(self.paces[:step]) / length)
            latents = gone.cos() * start + gone.sin() * goal
            timesteps = (1000 * (1 - gone)).expand(BATCH)
            for text, pooled in prompts:
                call = {
                    "hidden_states": latents,
                    "timestep": timesteps / 1000,
                    "pooled_projections": pooled,
                    "encoder_hidden_states": text,
                    "txt_ids": txt_ids,
                    "img_ids": img_ids,
                }
                yield {**call, "guidance": torch.full((BATCH,), 3.5)} if guidance else call


def play(model: Callable[..., tuple[Tensor]], film: Film, guidance: bool) -> list[Tensor]:
    """The outputs of all calls."""
    with torch.no_grad():
        return [model(**call, return_dict=False)[0].clone() for call in film.calls(guidance)]
