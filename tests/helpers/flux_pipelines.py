"""Pipelines of the FLUX family."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from pipeline_parts import MOST, ONE, TWO, assembled, both, drawing, picture, randomized, running, shifted, vae
from pipelines import Pipeline
from registry import few_blocks, registered

SIZE = dict(height=8, width=8)
GUIDED = dict(true_cfg_scale=4.0)


def flux(cls: type = FluxPipeline, *, guidance_embeds: bool = False, **parts: Any) -> Any:
    model = few_blocks("FluxTransformer2DModel", guidance_embeds=guidance_embeds)
    return assembled(cls, transformer=model.build, scheduler=shifted, **dict(vae=vae(1)) | parts)


def run_flux(**arguments: Any) -> Any:
    shapes = dict(prompt_embeds=(1, 5, 32), pooled_prompt_embeds=(1, 32))
    return running(both(**shapes) if "true_cfg_scale" in arguments else shapes, **SIZE | arguments)


def flux_controlnet() -> torch.nn.Module:
    model = FluxControlNetModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return randomized(model)


IMAGE_TO_IMAGE = dict(image=picture(8), strength=0.75)

FLUX_1 = [
    Pipeline("FLUX, distilled guidance", flux(guidance_embeds=True), run_flux(), calls=[ONE]),
    Pipeline("FLUX, true guidance", flux(), run_flux(**GUIDED), calls=[TWO], fast=True),
    Pipeline("FLUX, image to image", flux(FluxImg2ImgPipeline), run_flux(**IMAGE_TO_IMAGE), calls=[(1,) * MOST]),
    Pipeline(
        "FLUX, inpainting with true guidance",
        flux(FluxInpaintPipeline),
        run_flux(**GUIDED, **IMAGE_TO_IMAGE, mask_image=picture(8, channels=1)),
        calls=[(2,) * MOST],
    ),
    Pipeline(
        "FLUX Kontext",
        flux(FluxKontextPipeline, guidance_embeds=True),
        run_flux(image=picture(8), max_area=64, _auto_resize=False),
        calls=[ONE],
    ),
    Pipeline(
        "FLUX, ControlNet and true guidance",
        flux(FluxControlNetPipeline, controlnet=flux_controlnet),
        run_flux(**GUIDED, control_image=picture(8), control_guidance_end=0.6),
        calls=[TWO],
    ),
]


def flux2(cls: type, *, guidance_embeds: bool = False, **parts: Any) -> Any:
    model = registered("Flux2Transformer2DModel", num_layers=2, num_single_layers=2, guidance_embeds=guidance_embeds)
    return assembled(cls, transformer=model.build, scheduler=shifted, vae=vae2, **parts)


def vae2() -> AutoencoderKLFlux2:
    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        block_out_channels=(8,), layers_per_block=1, latent_channels=1, norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    ).eval().requires_grad_(False)  # fmt: skip


PROMPT = dict(prompt_embeds=(1, 5, 32))
DISTILLED = dict(is_distilled=True)
DRAWING = drawing(64)

FLUX_2 = [
    Pipeline("FLUX.2", flux2(Flux2Pipeline, guidance_embeds=True), running(PROMPT, **SIZE), calls=[ONE]),
    Pipeline(
        "FLUX.2 with a picture",
        flux2(Flux2Pipeline, guidance_embeds=True),
        running(PROMPT, **SIZE, image=DRAWING),
        calls=[ONE],
    ),
    Pipeline("FLUX.2 klein", flux2(Flux2KleinPipeline), running(both(**PROMPT), **SIZE), calls=[TWO]),
    Pipeline("FLUX.2 klein, distilled", flux2(Flux2KleinPipeline, **DISTILLED), running(PROMPT, **SIZE), calls=[ONE]),
    Pipeline(
        "FLUX.2 klein, keys and values of a picture",
        flux2(Flux2KleinKVPipeline, **DISTILLED),
        running(PROMPT, **SIZE, image=DRAWING),
        calls=[ONE],
    ),
]
FLUX_PIPELINES = [*FLUX_1, *FLUX_2]
