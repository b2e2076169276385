"""Pipelines that make images: all of them, those of FLUX and Stable Diffusion 3 from files of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AutoencoderKLQwenImage,
    BriaFiboPipeline,
    BriaPipeline,
    ChromaPipeline,
    CogVideoXDPMScheduler,
    CogView3PlusPipeline,
    CogView4Pipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    ErnieImagePipeline,
    GlmImagePipeline,
    HeunDiscreteScheduler,
    HiDreamImagePipeline,
    HunyuanDiTPipeline,
    HunyuanImagePipeline,
    Ideogram4Pipeline,
    KDPM2DiscreteScheduler,
    Krea2Pipeline,
    LongCatImagePipeline,
    Lumina2Pipeline,
    LuminaPipeline,
    NucleusMoEImagePipeline,
    OvisImagePipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PRXPipeline,
    QwenImage21Pipeline,
    QwenImageEditPipeline,
    QwenImagePipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SCMScheduler,
    ZImagePipeline,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance
from flux_pipelines import FLUX_PIPELINES
from pipeline_parts import (
    ONE,
    TWO,
    Words,
    assembled,
    both,
    drawing,
    embeds_masks,
    flow,
    masks,
    noise,
    run_guided,
    running,
    shifted,
    single,
    vae,
)
from pipelines import Pipeline
from registry import registered
from sd3_pipelines import SD3_PIPELINES

# Where a pipeline takes no embeddings, or cannot do with them alone, its method that makes them is replaced.


def run_z_image(**arguments: Any) -> Callable[..., torch.Tensor]:
    def run(pipe: Any, seed: int) -> torch.Tensor:
        prompts = dict(prompt_embeds=[noise(10, 16, seed=0)], negative_prompt_embeds=[noise(6, 16, seed=1)])
        return running({}, height=64, width=64, **prompts, **arguments)(pipe, seed)

    return run


def run_ernie(pipe: Any, seed: int) -> torch.Tensor:
    prompts = dict(prompt_embeds=[noise(5, 16, seed=0)], negative_prompt_embeds=[noise(4, 16, seed=1)])
    return running({}, height=64, width=64, **prompts)(pipe, seed)


def run_hidream(pipe: Any, seed: int) -> torch.Tensor:
    pipe.default_sample_size = 8  # else any picture becomes one of 1024 x 1024
    # fewer tokens in all (T5's, and those of two layers of Llama) than the picture's 16, as in reality
    shapes = both(prompt_embeds_t5=(1, 4, 8), prompt_embeds_llama3=(8, 1, 4, 4), pooled_prompt_embeds=(1, 8))
    return running(shapes, height=64, width=64)(pipe, seed)


def run_longcat(pipe: Any, seed: int) -> torch.Tensor:
    # it takes embeddings, but counts the prompts
    pipe._encode_prompt = lambda prompt: noise(1, 6, 32, seed=len(prompt[0]))
    return running({}, prompt="a prompt", height=64, width=64, enable_prompt_rewrite=False)(pipe, seed)


def run_qwen_image_21(pipe: Any, seed: int) -> torch.Tensor:
    no_picture = torch.zeros(1, 6, dtype=torch.bool)
    pipe.encode_prompt = lambda prompt, **_: (noise(1, 6, 32, seed=len(prompt)), None, no_picture)
    prompts = dict(prompt="a prompt", negative_prompt="none", true_cfg_scale=3.0)
    return running({}, height=64, width=64, **prompts)(pipe, seed)


def qwen_vae() -> torch.nn.Module:
    """Makes a picture 64 times smaller: the pipeline enlarges any to 1024 x 1024."""
    torch.manual_seed(0)
    return AutoencoderKLQwenImage(
        base_dim=2, z_dim=4, dim_mult=[1] * 7, num_res_blocks=1, temperal_downsample=[False] * 6,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval().requires_grad_(False)  # fmt: skip


class Processor:
    """Of Qwen-Image 2.1, which asks for the length of its system prompt and the number of a token."""

    tokenizer = property(lambda self: self)

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[1, 2, 3]]

    def encode(self, text: str) -> list[int]:
        return [5]


def run_ideogram(pipe: Any, seed: int) -> torch.Tensor:
    def encode_prompt(grid_h: int, grid_w: int, **_: Any) -> tuple[torch.Tensor, ...]:
        text, image = 4, grid_h * grid_w
        features = torch.cat([noise(1, text, 24), torch.zeros(1, image, 24)], dim=1)
        places = [[i] * 3 for i in range(text)] + [[99, 99 + i, 99 + j] for i in range(grid_h) for j in range(grid_w)]
        kinds = torch.tensor([[3] * text + [2] * image])
        return features, torch.tensor([places]), torch.ones_like(kinds), kinds

    pipe.encode_prompt = encode_prompt
    guidance = dict(guidance_scale=3.0, guidance_schedule=None)
    return running({}, prompt="a prompt", max_sequence_length=4, height=64, width=64, **guidance)(pipe, seed)


def hunyuan_image(name: str, calls: tuple[int, ...], guider: Callable[[], Any]) -> Pipeline:
    real = {f"{sign}prompt_embeds_mask": torch.ones(1, 6, dtype=torch.int64) for sign in ("", "negative_")}
    real |= {f"{name}_2": torch.ones(1, 4, dtype=torch.int64) for name in real}
    return single(
        name, HunyuanImagePipeline, "HunyuanImageTransformer2DModel", flow,
        running(both(prompt_embeds=(1, 6, 16), prompt_embeds_2=(1, 4, 12)), height=64, width=64, **real), calls,
        variant="second text encoder",
        config=dict(text_embed_2_dim=None),  # with it, the model is refused
        parts=dict(ocr_guider=guider),  # the one that it takes where there is a second embedding
    )  # fmt: skip


NO_NEGATIVE_TEXT = dict(negative_prompt=None)  # its default is "", which is refused beside embeddings
PIXART = dict(negative_prompt=None, use_resolution_binning=False, **masks())
DPM = DPMSolverMultistepScheduler

# fmt: off
OTHERS = [
    single("AuraFlow", AuraFlowPipeline, "AuraFlowTransformer2DModel", flow, run_guided(6, 32, **masks()), ONE),
    single(
        "Bria", BriaPipeline, "BriaTransformer2DModel", flow, run_guided(6, 32, height=8, width=8), ONE,
        parts=dict(vae=vae(1)),
    ),
    single(
        "Bria FIBO", BriaFiboPipeline, "BriaFiboTransformer2DModel", shifted,
        running({}, prompt="some words", height=64, width=64), ONE,
        parts=dict(tokenizer=Words, text_encoder=Words),
    ),
    single(
        "Chroma", ChromaPipeline, "ChromaTransformer2DModel", shifted,
        run_guided(6, 32, height=8, width=8, **masks(torch.float32)), TWO, parts=dict(vae=vae(1)),
    ),
    single(
        "CogView3-Plus", CogView3PlusPipeline, "CogView3PlusTransformer2DModel", CogVideoXDPMScheduler,
        run_guided(6, 16), ONE,
    ),
    single("CogView4", CogView4Pipeline, "CogView4Transformer2DModel", shifted, run_guided(6, 16), TWO),
    single(
        "ERNIE-Image", ErnieImagePipeline, "ErnieImageTransformer2DModel", flow, run_ernie, ONE, prompt="text_bth",
    ),
    single(
        "GLM-Image", GlmImagePipeline, "GlmImageTransformer2DModel", shifted,
        run_guided(6, 16, height=8, width=8, guidance_scale=3.0, prior_token_ids=torch.arange(16).unsqueeze(0)), TWO,
        parts=dict(vae=vae(4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)),
    ),
    single(
        "HiDream", HiDreamImagePipeline, "HiDreamImageTransformer2DModel", flow, run_hidream, ONE,
        variant="dense, not square", prompt="encoder_hidden_states_t5",
    ),
    single(
        "Hunyuan-DiT", HunyuanDiTPipeline, "HunyuanDiT2DModel", DDPMScheduler,
        running(
            both(prompt_embeds=(1, 6, 16), prompt_embeds_2=(1, 8, 16)), height=64, width=64,
            use_resolution_binning=False, **masks(), **masks(suffix="_2", length=8),
        ),
        ONE, parts=dict(requires_safety_checker=False),
    ),
    hunyuan_image("HunyuanImage", TWO, partial(AdaptiveProjectedMixGuidance, adaptive_projected_guidance_start_step=3)),
    hunyuan_image(
        "HunyuanImage, guidance in between", (1, 1, 2, 2, 2, 2, 1, 1),
        partial(ClassifierFreeGuidance, guidance_scale=3.0, start=0.25, stop=0.75),
    ),
    Pipeline(
        "Ideogram 4",
        assembled(
            Ideogram4Pipeline, transformer=registered("Ideogram4Transformer2DModel").build,
            unconditional_transformer=partial(registered("Ideogram4Transformer2DModel").build, seed=1), scheduler=flow,
        ),
        run_ideogram, calls=[ONE, ONE], denoisers=("transformer", "unconditional_transformer"),
    ),
    single(
        "Krea 2", Krea2Pipeline, "Krea2Transformer2DModel", shifted,
        running(both(prompt_embeds=(1, 6, 3, 16)), height=64, width=64, **embeds_masks(6)), TWO,
    ),
    single(
        "LongCat-Image", LongCatImagePipeline, "LongCatImageTransformer2DModel", shifted, run_longcat, TWO,
        config=dict(in_channels=64),
    ),
    single(
        "Lumina", LuminaPipeline, "LuminaNextDiT2DModel", flow,
        run_guided(6, 16, height=128, scaling_watershed=0.3, **masks()), ONE,  # other rotations after three steps
    ),
    single("Lumina 2", Lumina2Pipeline, "Lumina2Transformer2DModel", shifted, run_guided(6, 16, **masks()), TWO),
    single(
        "Lumina 2, guidance ends", Lumina2Pipeline, "Lumina2Transformer2DModel", shifted,
        run_guided(6, 16, cfg_trunc_ratio=0.5, **masks()), (2, 2, 2, 2, 1, 1, 1, 1), fast=True,
    ),
    single(
        "Nucleus-Image", NucleusMoEImagePipeline, "NucleusMoEImageTransformer2DModel", shifted,
        run_guided(6, 16, **embeds_masks(6)), TWO, config=dict(patch_size=2),
    ),
    single(
        "Ovis-Image", OvisImagePipeline, "OvisImageTransformer2DModel", shifted,
        run_guided(6, 32, **NO_NEGATIVE_TEXT), TWO,
    ),
    single(
        "PixArt-alpha", PixArtAlphaPipeline, "PixArtTransformer2DModel", DPM, run_guided(6, 16, **PIXART), ONE,
        config=dict(sample_size=128),  # the size with which the pipeline gives resolution and aspect ratio
    ),
    *[
        single(
            f"PixArt-Sigma, {solver.__name__.removesuffix('Scheduler')}", PixArtSigmaPipeline,
            "PixArtTransformer2DModel", solver, run_guided(6, 16, **PIXART), calls,
            config=dict(use_additional_conditions=False),
        )
        for solver, calls in ((DPM, ONE), (HeunDiscreteScheduler, (1,) * 15), (KDPM2DiscreteScheduler, (1,) * 15))
    ],
    single(
        "PixArt-Sigma, perturbed attention", PixArtSigmaPAGPipeline, "PixArtTransformer2DModel", DPM,
        run_guided(6, 16, **PIXART), ONE, config=dict(use_additional_conditions=False),
        parts=dict(pag_applied_layers="transformer_blocks.1"),
    ),
    single(
        "PRX", PRXPipeline, "PRXTransformer2DModel", flow,
        run_guided(6, 32, use_resolution_binning=False, **masks(torch.bool)), ONE,
    ),
    single(
        "Qwen-Image", QwenImagePipeline, "QwenImageTransformer2DModel", shifted, run_guided(7, 16, negative=4), TWO,
    ),
    single(
        "Qwen-Image-Edit", QwenImageEditPipeline, "QwenImageTransformer2DModel", shifted,
        running(
            dict(prompt_embeds=(1, 7, 16), negative_prompt_embeds=(1, 4, 16)), image=drawing(64), height=128, width=128
        ),
        TWO, parts=dict(vae=qwen_vae),
    ),
    single(
        "Qwen-Image 2.1, keys and values of the prompt", QwenImage21Pipeline, "QwenImage21Transformer2DModel", shifted,
        run_qwen_image_21, TWO, parts=dict(processor=Processor),
    ),
    single("Sana", SanaPipeline, "SanaTransformer2DModel", DPM, run_guided(6, 8, **PIXART, height=192, width=192), ONE),
    single(
        "Sana Sprint", SanaSprintPipeline, "SanaTransformer2DModel", SCMScheduler,
        running(
            dict(prompt_embeds=(1, 6, 8)), prompt_attention_mask=torch.ones(1, 6, dtype=torch.int64), height=192,
            width=192, use_resolution_binning=False, intermediate_timesteps=None,
        ),
        ONE, config=dict(guidance_embeds=True),
    ),
    single(
        "Z-Image", ZImagePipeline, "ZImageTransformer2DModel", shifted, run_z_image(), ONE,
        prompt=None,  # given by its place
    ),
    single(
        "Z-Image, guidance ends", ZImagePipeline, "ZImageTransformer2DModel", shifted, run_z_image(cfg_truncation=0.6),
        ONE, prompt=None,
    ),
]
# fmt: on

IMAGE_PIPELINES = [*SD3_PIPELINES, *FLUX_PIPELINES, *OTHERS]
