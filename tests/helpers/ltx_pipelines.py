"""Pipelines of LTX and LTX-2."""

from __future__ import annotations

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from pipeline_parts import STEPS, flow, shifted
from pipelines import Pipeline
from transformers import T5Config, T5EncoderModel
from video_parts import build, masks, part, prompts, run, tokenizer
from video_pipelines import FEW, IMAGE

LTX_VAE = part(
    "AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
    layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False),
    decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1,
)  # fmt: skip
LTX2_VAE = part(
    "AutoencoderKLLTX2Video", latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
    layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
    decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False), downsample_type=("spatial",),
    upsample_residual=(False,), upsample_factor=(1,), patch_size=1,
)  # fmt: skip
LTX2_AUDIO_VAE = part(
    "AutoencoderKLLTX2Audio", base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2,
    mel_bins=8,
)  # fmt: skip


def t5() -> torch.nn.Module:
    config = T5Config(vocab_size=2, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval().requires_grad_(False)


def connectors() -> torch.nn.Module:
    layers = {
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in dict(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, num_learnable_registers=None
        ).items()
    }
    made = LTX2TextConnectors(caption_channels=16, text_proj_in_factor=1, rope_double_precision=False, **layers)
    return made.eval().requires_grad_(False)


LTX = ("LTXVideoTransformer3DModel", FEW)
LTX_PROMPTS = prompts(10, 16) | masks(7, 4, length=10)
LTX2 = build(
    "LTX2Pipeline", ("LTX2VideoTransformer3DModel", FEW), scheduler=shifted, vae=LTX2_VAE,
    audio_vae=LTX2_AUDIO_VAE, connectors=connectors,
)  # fmt: skip
LTX2_RUN = LTX_PROMPTS | dict(height=32, width=32, num_frames=3, spatio_temporal_guidance_blocks=[1])

# fmt: off
LTX_PIPELINES = [
    Pipeline(
        "LTX",
        build("LTXPipeline", LTX, scheduler=shifted),
        run(**LTX_PROMPTS, height=64, width=64, num_frames=9),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "LTX condition",
        build("LTXConditionPipeline", LTX, scheduler=flow, vae=LTX_VAE),
        run(**LTX_PROMPTS, image=IMAGE, height=32, width=32, num_frames=9),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "LTX, image to video",
        build("LTXImageToVideoPipeline", LTX, scheduler=shifted, vae=LTX_VAE),
        run(**LTX_PROMPTS, image=IMAGE, height=32, width=32, num_frames=9),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "LTX, a prompt per window",
        build(
            "LTXI2VLongMultiPromptPipeline", LTX, scheduler=part("LTXEulerAncestralRFScheduler"), vae=LTX_VAE,
            tokenizer=tokenizer, text_encoder=t5,
        ),
        run(
            prompt="one prompt | another one", negative_prompt="", height=32, width=32, num_frames=13,
            temporal_tile_size=8, temporal_overlap=4, guidance_scale=3.0, seed=None, max_sequence_length=8,
        ),
        calls=[(1,) * 7],
        windows=[(1,) * 7] * 2,
    ),
    Pipeline(
        "LTX-2, image to video",
        build(
            "LTX2ImageToVideoPipeline", ("LTX2VideoTransformer3DModel", FEW), scheduler=shifted, vae=LTX2_VAE,
            audio_vae=LTX2_AUDIO_VAE, connectors=connectors,
        ),
        run(**LTX2_RUN, image=IMAGE, image_crf=0, stg_scale=0.0, audio_stg_scale=0.0),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "LTX-2, without guidance",
        LTX2,
        run(
            **LTX2_RUN, guidance_scale=1.0, stg_scale=0.0, modality_scale=1.0, audio_guidance_scale=1.0,
            audio_stg_scale=0.0, audio_modality_scale=1.0,
        ),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "LTX-2, every guidance",
        LTX2,
        run(**LTX2_RUN),
        calls=[(3,) * STEPS],
    ),
    Pipeline(
        "LTX-2, spatio-temporal guidance",
        LTX2,
        run(**LTX2_RUN, modality_scale=1.0, audio_modality_scale=1.0),
        calls=[(2,) * STEPS],
    ),
]
# fmt: on
