"""Pipelines that make images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from pipelines import Pipeline
from registry import few_blocks
from torch import Tensor

STEPS = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=few_blocks("SD3Transformer2DModel", num_layers=4).build(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip


def run_sd3(**arguments: Any) -> Callable[[Any, int], Tensor]:
    def run(pipe: Any, seed: int) -> Tensor:
        config = pipe.transformer.config
        prompts = {
            name: noise(1, 5, config.joint_attention_dim, seed=place) if "pooled" not in name
            else noise(1, config.pooled_projection_dim, seed=place)
            for place, name in enumerate(
                ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
            )
        }  # fmt: skip
        call = dict(num_inference_steps=STEPS, generator=generator(seed), output_type="latent") | arguments
        return pipe(**prompts, **call).images

    return run


IMAGE_PIPELINES = [
    Pipeline("SD3", sd3, run_sd3(guidance_scale=4.0), calls=[(1,) * STEPS]),
    Pipeline(
        "SD3, skip-layer guidance",
        sd3,
        run_sd3(guidance_scale=4.0, skip_guidance_layers=[1], skip_layer_guidance_stop=0.7),
        calls=[(1, 2, 2, 2, 2, 2, 1, 1)],
        prompt=None,  # the batch of the guided call holds both prompts
        fast=True,
    ),
]
