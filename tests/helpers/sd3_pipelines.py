"""Pipelines of Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.callbacks import SD3CFGCutoffCallback
from pipeline_parts import MOST, ONE, assembled, both, flow, picture, randomized, running, vae
from pipelines import Pipeline
from registry import registered


def sd3(cls: type = StableDiffusion3Pipeline, **parts: Any) -> Callable[[], Any]:
    model = registered("SD3Transformer2DModel")
    return assembled(cls, transformer=model.build, scheduler=flow, vae=vae(4), **parts)


def run_sd3(batch: int = 1, **arguments: Any) -> Callable[..., torch.Tensor]:
    shapes = both(prompt_embeds=(batch, 5, 32), pooled_prompt_embeds=(batch, 64))
    return running(shapes, **dict(guidance_scale=4.0) | arguments)


def sd3_controlnet() -> torch.nn.Module:
    return randomized(
        SD3ControlNetModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
            pos_embed_max_size=8,
        )
    )  # fmt: skip


SD3_PIPELINES = [
    Pipeline("SD3", sd3(), run_sd3(), calls=[ONE]),
    Pipeline("SD3, two prompts", sd3(), run_sd3(batch=2), calls=[ONE]),
    Pipeline(
        "SD3, skip-layer guidance",
        sd3(),
        run_sd3(skip_guidance_layers=[1], skip_layer_guidance_stop=0.7),
        calls=[(1, 2, 2, 2, 2, 2, 1, 1)],
        prompt=None,  # the batch of the guided call holds both prompts
        fast=True,
    ),
    Pipeline(
        "SD3, guidance ends",
        sd3(),
        run_sd3(callback_on_step_end=SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)),
        calls=[ONE],
        prompt=None,  # of the batch of two prompts one is left, from a step that the mask computes
    ),
    Pipeline(
        "SD3, image to image",
        sd3(StableDiffusion3Img2ImgPipeline),
        run_sd3(image=picture(16), strength=0.75),
        calls=[(1,) * MOST],
    ),
    Pipeline(
        "SD3, ControlNet",
        sd3(StableDiffusion3ControlNetPipeline, controlnet=sd3_controlnet),
        run_sd3(control_image=picture(16), control_guidance_end=0.6),
        calls=[ONE],
    ),
]
