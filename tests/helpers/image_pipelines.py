"""Pipelines that make images, but for those of the FLUX family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    BriaFiboPipeline,
    BriaPipeline,
    ChromaPipeline,
    CogVideoXDPMScheduler,
    CogView3PlusPipeline,
    CogView4Pipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    HiDreamImagePipeline,
    HunyuanDiTPipeline,
    KDPM2DiscreteScheduler,
    LongCatImagePipeline,
    Lumina2Pipeline,
    OvisImagePipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PRXPipeline,
    QwenImagePipeline,
    SanaPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from diffusers.callbacks import SD3CFGCutoffCallback
from flux_pipelines import FLUX_PIPELINES
from pipeline_parts import (
    MOST,
    ONE,
    TWO,
    Words,
    assembled,
    both,
    flow,
    noise,
    picture,
    randomized,
    running,
    shifted,
    vae,
)
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


SD3 = [
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


def spec(
    name: str,
    cls: type,
    model: str,
    scheduler: Callable[..., Any],
    run: Callable[..., torch.Tensor],
    calls: Sequence[int],
    *,
    variant: str = "",
    config: dict[str, Any] | None = None,
    parts: dict[str, Any] | None = None,
    fast: bool = False,
    prompt: str | None = "encoder_hidden_states",
) -> Pipeline:
    """A pipeline of one transformer, which the registry knows."""
    transformer = registered(model, variant, **config or {}).build
    build = assembled(cls, transformer=transformer, scheduler=scheduler, **parts or {})
    return Pipeline(name, build, run, [calls], fast=fast, prompt=prompt)


def run_guided(length: int, dim: int, negative: int | None = None, **arguments: Any) -> Callable[..., torch.Tensor]:
    """With a prompt and a negative prompt of ``negative`` tokens."""
    shapes = dict(prompt_embeds=(1, length, dim), negative_prompt_embeds=(1, negative or length, dim))
    return running(shapes, **dict(height=64, width=64) | arguments)


def masks(dtype: torch.dtype = torch.int64, suffix: str = "", length: int = 6) -> dict[str, torch.Tensor]:
    """The negative prompt is the shorter one."""
    real = torch.arange(length).unsqueeze(0)
    return {
        f"prompt_attention_mask{suffix}": (real < length).to(dtype),
        f"negative_prompt_attention_mask{suffix}": (real < 4).to(dtype),
    }


def run_z_image(**arguments: Any) -> Callable[..., torch.Tensor]:
    def run(pipe: Any, seed: int) -> torch.Tensor:
        prompts = dict(prompt_embeds=[noise(10, 16, seed=0)], negative_prompt_embeds=[noise(6, 16, seed=1)])
        return running({}, height=64, width=64, **prompts, **arguments)(pipe, seed)

    return run


def run_hidream(pipe: Any, seed: int) -> torch.Tensor:
    pipe.default_sample_size = 8  # else any picture becomes one of 1024 x 1024
    shapes = both(prompt_embeds_t5=(1, 6, 8), prompt_embeds_llama3=(8, 1, 6, 4), pooled_prompt_embeds=(1, 8))
    return running(shapes, height=64, width=64)(pipe, seed)


def run_longcat(pipe: Any, seed: int) -> torch.Tensor:
    # stands in for the text encoder: embeddings are an argument, but only a prompt's length gives the batch size
    pipe._encode_prompt = lambda prompt: noise(1, 6, 32, seed=len(prompt[0]))
    return running({}, prompt="a prompt", height=64, width=64, enable_prompt_rewrite=False)(pipe, seed)


NO_NEGATIVE_TEXT = dict(negative_prompt=None)  # its default is "", which is refused beside embeddings
PIXART = dict(negative_prompt=None, use_resolution_binning=False, **masks())
DPM = DPMSolverMultistepScheduler

# fmt: off
OTHERS = [
    spec("AuraFlow", AuraFlowPipeline, "AuraFlowTransformer2DModel", flow, run_guided(6, 32, **masks()), ONE),
    spec(
        "Bria", BriaPipeline, "BriaTransformer2DModel", flow, run_guided(6, 32, height=8, width=8), ONE,
        parts=dict(vae=vae(1)),
    ),
    spec(
        "Bria FIBO", BriaFiboPipeline, "BriaFiboTransformer2DModel", shifted,
        running({}, prompt="some words", height=64, width=64), ONE,
        parts=dict(tokenizer=Words, text_encoder=Words),
    ),
    spec(
        "Chroma", ChromaPipeline, "ChromaTransformer2DModel", shifted,
        run_guided(6, 32, height=8, width=8, **masks(torch.float32)), TWO, parts=dict(vae=vae(1)),
    ),
    spec(
        "CogView3-Plus", CogView3PlusPipeline, "CogView3PlusTransformer2DModel", CogVideoXDPMScheduler,
        run_guided(6, 16), ONE,
    ),
    spec("CogView4", CogView4Pipeline, "CogView4Transformer2DModel", shifted, run_guided(6, 16), TWO),
    spec(
        "HiDream", HiDreamImagePipeline, "HiDreamImageTransformer2DModel", flow, run_hidream, ONE,
        variant="dense, not square", prompt="encoder_hidden_states_t5",
    ),
    spec(
        "Hunyuan-DiT", HunyuanDiTPipeline, "HunyuanDiT2DModel", DDPMScheduler,
        running(
            both(prompt_embeds=(1, 6, 16), prompt_embeds_2=(1, 8, 16)), height=64, width=64,
            use_resolution_binning=False, **masks(), **masks(suffix="_2", length=8),
        ),
        ONE, parts=dict(requires_safety_checker=False),
    ),
    spec(
        "LongCat-Image", LongCatImagePipeline, "LongCatImageTransformer2DModel", shifted, run_longcat, TWO,
        config=dict(in_channels=64),
    ),
    spec("Lumina 2", Lumina2Pipeline, "Lumina2Transformer2DModel", shifted, run_guided(6, 16, **masks()), TWO),
    spec(
        "Lumina 2, guidance ends", Lumina2Pipeline, "Lumina2Transformer2DModel", shifted,
        run_guided(6, 16, cfg_trunc_ratio=0.5, **masks()), (2, 2, 2, 2, 1, 1, 1, 1), fast=True,
    ),
    spec(
        "Ovis-Image", OvisImagePipeline, "OvisImageTransformer2DModel", shifted,
        run_guided(6, 32, **NO_NEGATIVE_TEXT), TWO,
    ),
    spec(
        "PixArt-alpha", PixArtAlphaPipeline, "PixArtTransformer2DModel", DPM, run_guided(6, 16, **PIXART), ONE,
        config=dict(sample_size=128),  # the size with which the pipeline gives resolution and aspect ratio
    ),
    *[
        spec(
            f"PixArt-Sigma, {solver.__name__.removesuffix('Scheduler')}", PixArtSigmaPipeline,
            "PixArtTransformer2DModel", solver, run_guided(6, 16, **PIXART), calls,
            config=dict(use_additional_conditions=False),
        )
        for solver, calls in ((DPM, ONE), (HeunDiscreteScheduler, (1,) * 15), (KDPM2DiscreteScheduler, (1,) * 15))
    ],
    spec(
        "PRX", PRXPipeline, "PRXTransformer2DModel", flow,
        run_guided(6, 32, use_resolution_binning=False, **masks(torch.bool)), ONE,
    ),
    spec(
        "Qwen-Image", QwenImagePipeline, "QwenImageTransformer2DModel", shifted, run_guided(7, 16, negative=4), TWO,
    ),
    spec("Sana", SanaPipeline, "SanaTransformer2DModel", DPM, run_guided(6, 8, **PIXART, height=192, width=192), ONE),
    spec(
        "Z-Image", ZImagePipeline, "ZImageTransformer2DModel", shifted, run_z_image(), ONE,
        prompt=None,  # given by its place
    ),
    spec(
        "Z-Image, guidance ends", ZImagePipeline, "ZImageTransformer2DModel", shifted, run_z_image(cfg_truncation=0.6),
        ONE, prompt=None,
    ),
]
# fmt: on

IMAGE_PIPELINES = [*SD3, *FLUX_PIPELINES, *OTHERS]
