"""Pipelines that make videos: the families of Wan and of HunyuanVideo."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from pipeline_parts import STEPS, flow, noise
from pipelines import Pipeline
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from video_parts import build, masks, part, prompts, run

SIZE = dict(height=32, width=32, num_frames=5)
IMAGE = Image.fromarray((noise(32, 32, 3).sigmoid() * 255).byte().numpy())

UNIPC = part("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)

WAN_VAE = part(
    "AutoencoderKLWan", base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
    latents_std=[1.0] * 4,
)  # fmt: skip
HUNYUAN_VAE = part(
    "AutoencoderKLHunyuanVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
    norm_num_groups=4, mid_block_add_attention=False,
)  # fmt: skip
HUNYUAN15_VAE = part(
    "AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
    spatial_compression_ratio=2, temporal_compression_ratio=2, downsample_match_channel=False,
    upsample_match_channel=False,
)  # fmt: skip

FEW = dict(num_layers=3)
WAN = ("WanTransformer3DModel", FEW)
SKYREELS = ("SkyReelsV2Transformer3DModel", FEW)
FEW_HUNYUAN = dict(num_layers=2, num_single_layers=2)
HUNYUAN = ("HunyuanVideoTransformer3DModel", FEW_HUNYUAN)
HUNYUAN_PROMPTS = prompts(12, 16) | prompts(8, name="pooled_prompt_embeds") | masks(7, 10, length=12)
HUNYUAN15_RUN = dict(
    **prompts(6, 16), **masks(4, 5, 6, "prompt_embeds_mask", torch.float32), **prompts(4, 8, name="prompt_embeds_2"),
    **masks(3, 1, 4, "prompt_embeds_mask_2", torch.float32), height=8, width=8, num_frames=3,
)  # fmt: skip

CLIP_PROCESSOR = partial(CLIPImageProcessor, size=dict(height=32, width=32), crop_size=32)
SIGLIP_PROCESSOR = partial(SiglipImageProcessor, size=dict(height=32, width=32))


def clip() -> CLIPVisionModel:
    """Of 257 tokens, as the released one."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=2,
    )  # fmt: skip
    return CLIPVisionModel(config).eval().requires_grad_(False)


def siglip() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
    )  # fmt: skip
    return SiglipVisionModel(config).eval().requires_grad_(False)


def hunyuan15(**guidance: Any) -> Callable[[], Any]:
    return build(
        "HunyuanVideo15Pipeline", ("HunyuanVideo15Transformer3DModel", FEW), scheduler=flow, vae=HUNYUAN15_VAE,
        guider=part("ClassifierFreeGuidance", **guidance),
    )  # fmt: skip


# fmt: off
WAN_PIPELINES = [
    Pipeline(
        "Wan 2.1",
        build("WanPipeline", WAN, scheduler=UNIPC),
        run(**prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Wan 2.2, two experts",
        build("WanPipeline", WAN, WAN, scheduler=UNIPC, boundary_ratio=0.875),
        run(**prompts(5, 16), **SIZE, num_inference_steps=10, guidance_scale_2=3.0),
        calls=[(2,) * 4, (2,) * 6],
        denoisers=("transformer", "transformer_2"),
        fast=True,
    ),
    Pipeline(
        "Wan 2.2, the second expert without guidance",
        build("WanPipeline", WAN, WAN, scheduler=UNIPC, boundary_ratio=0.6),
        run(**prompts(5, 16), **SIZE, guidance_scale_2=1.0),
        calls=[(2,) * 6, (2,) * 2],
        denoisers=("transformer", "transformer_2"),
    ),
    Pipeline(
        "Wan 2.2, a time per token",
        build("WanPipeline", WAN, scheduler=UNIPC, expand_timesteps=True),
        run(**prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Wan 2.2, image to video",
        build(
            "WanImageToVideoPipeline", ("WanTransformer3DModel", FEW | dict(in_channels=12)), scheduler=UNIPC,
            vae=WAN_VAE,
        ),
        run(image=IMAGE, **prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Wan 2.2, image to video, a time per token",
        build("WanImageToVideoPipeline", WAN, scheduler=UNIPC, vae=WAN_VAE, expand_timesteps=True),
        run(image=IMAGE, **prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Wan, video to video",
        build("WanVideoToVideoPipeline", WAN, scheduler=UNIPC, vae=WAN_VAE),
        run(
            latents=noise(1, 4, 2, 4, 4), **prompts(5, 16), height=32, width=32, video=None, strength=0.5,
            num_inference_steps=16,
        ),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Wan VACE",
        build(
            "WanVACEPipeline", ("WanVACETransformer3DModel", dict(vace_in_channels=72)), scheduler=UNIPC, vae=WAN_VAE
        ),
        run(**prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "SkyReels V2",
        build("SkyReelsV2Pipeline", SKYREELS, scheduler=UNIPC),
        run(**prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "SkyReels V2, diffusion forcing",
        build("SkyReelsV2DiffusionForcingPipeline", SKYREELS, scheduler=UNIPC),
        run(prompt=None, **prompts(5, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "SkyReels V2, diffusion forcing, asynchronous",
        build("SkyReelsV2DiffusionForcingPipeline", SKYREELS, scheduler=UNIPC),
        run(
            prompt=None, **prompts(5, 16), height=32, width=32, num_frames=17, base_num_frames=17, ar_step=2,
            causal_block_size=1,
        ),
        calls=[(2,) * 16],
    ),
    Pipeline(
        "SkyReels V2, diffusion forcing, long video",
        build("SkyReelsV2DiffusionForcingPipeline", SKYREELS, scheduler=UNIPC),
        run(
            prompt=None, **prompts(5, 16), height=32, width=32, num_frames=17, base_num_frames=9, overlap_history=5,
            addnoise_condition=20,
        ),
        calls=[(2,) * STEPS],
        windows=[(2,) * STEPS] * 2,
    ),
    Pipeline(
        "SkyReels V2, diffusion forcing, long video, asynchronous",
        build("SkyReelsV2DiffusionForcingPipeline", SKYREELS, scheduler=UNIPC),
        run(
            prompt=None, **prompts(5, 16), height=32, width=32, num_frames=17, base_num_frames=9, overlap_history=5,
            ar_step=2, causal_block_size=1,
        ),
        calls=[(2,) * 12],
        windows=[(2,) * STEPS] * 2,
    ),
    Pipeline(
        "Wan Animate, two segments",
        build(
            "WanAnimatePipeline", ("WanAnimateTransformer3DModel", {}), scheduler=UNIPC, vae=WAN_VAE,
            image_encoder=clip, image_processor=CLIP_PROCESSOR,
        ),
        run(
            image=IMAGE, pose_video=[IMAGE] * 9, face_video=[IMAGE] * 9, **prompts(8, 16), height=32, width=32,
            segment_frame_length=5, prev_segment_conditioning_frames=1, guidance_scale=3.0,
        ),
        calls=[(2,) * STEPS],
        windows=[(2,) * STEPS],
    ),
    Pipeline(
        "ChronoEdit, fewer frames after the reasoning",
        build(
            "ChronoEditPipeline", ("ChronoEditTransformer3DModel", FEW | dict(in_channels=12)), scheduler=UNIPC,
            vae=WAN_VAE, image_encoder=clip, image_processor=CLIP_PROCESSOR,
        ),
        run(
            image=IMAGE, **prompts(12, 16), height=32, width=32, num_frames=9,
            enable_temporal_reasoning=True, num_temporal_reasoning_steps=3,
        ),
        calls=[(2,) * STEPS],
    ),
]

HUNYUAN_PIPELINES = [
    Pipeline(
        "HunyuanVideo",
        build("HunyuanVideoPipeline", HUNYUAN, scheduler=flow),
        run(**HUNYUAN_PROMPTS, **SIZE, true_cfg_scale=3.0),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "HunyuanVideo 1.5",
        hunyuan15(guidance_scale=4.0),
        run(**HUNYUAN15_RUN),
        calls=[(2,) * STEPS],
        dynamo=dict(capture_dynamic_output_shape_ops=True),
        fast=True,
    ),
    Pipeline(
        "HunyuanVideo 1.5, guidance in the middle",
        hunyuan15(guidance_scale=4.0, start=0.25, stop=0.75),
        run(**HUNYUAN15_RUN),
        calls=[(1, 1, 2, 2, 2, 2, 1, 1)],
        dynamo=dict(capture_dynamic_output_shape_ops=True),
    ),
    Pipeline(
        "HunyuanVideo, image to video by token",
        build(
            "HunyuanVideoImageToVideoPipeline",
            ("HunyuanVideoTransformer3DModel", FEW_HUNYUAN | dict(image_condition_type="token_replace")),
            scheduler=flow, vae=HUNYUAN_VAE,
        ),
        run(image=IMAGE, **HUNYUAN_PROMPTS, **SIZE, true_cfg_scale=3.0),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "HunyuanVideo, image to video by channel",
        build(
            "HunyuanVideoImageToVideoPipeline",
            ("HunyuanVideoTransformer3DModel", FEW_HUNYUAN | dict(image_condition_type="latent_concat", in_channels=9)),
            scheduler=flow, vae=HUNYUAN_VAE,
        ),
        run(image=IMAGE, **HUNYUAN_PROMPTS, **SIZE, true_cfg_scale=3.0),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "HunyuanVideo Framepack",
        build(
            "HunyuanVideoFramepackPipeline", ("HunyuanVideoFramepackTransformer3DModel", FEW_HUNYUAN),
            scheduler=part("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True), vae=HUNYUAN_VAE,
            image_encoder=siglip, feature_extractor=SIGLIP_PROCESSOR,
        ),
        run(
            image=IMAGE, **HUNYUAN_PROMPTS, height=32, width=32, num_frames=9, latent_window_size=2, true_cfg_scale=3.0,
        ),
        calls=[(2,) * STEPS],
        windows=[(2,) * STEPS],
        dynamo=dict(capture_scalar_outputs=True),  # the length of the prompt is read in the middle of the model
    ),
]
# fmt: on
