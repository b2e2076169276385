"""Pipelines that make sounds."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer, AceStepConditionEncoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
from pipeline_parts import STEPS, flow, noise
from pipelines import Pipeline
from transformers import Qwen3Config, Qwen3Model
from video_parts import build, masks, part, prompts, run, tokenizer

ACE_AUDIO = dict(
    hidden_size=16, intermediate_size=16, audio_acoustic_hidden_dim=8, num_attention_pooler_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, head_dim=8,
)  # fmt: skip
OOBLECK = dict(encoder_hidden_size=16, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=4)


def text_encoder() -> torch.nn.Module:
    config = Qwen3Config(
        vocab_size=2, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return Qwen3Model(config).eval().requires_grad_(False)


def condition_encoder() -> torch.nn.Module:
    made = AceStepConditionEncoder(
        hidden_size=16, intermediate_size=16, text_hidden_dim=16, timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return made.eval().requires_grad_(False)


def projection() -> torch.nn.Module:
    return StableAudioProjectionModel(text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32).eval()


# Both return before they free the memory of their models where they are asked for latents.
DECODED = dict(output_type="pt")

ACE_STEP = build(
    "AceStepPipeline", ("AceStepTransformer1DModel", dict(num_hidden_layers=3)),
    scheduler=part("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1), tokenizer=tokenizer,
    text_encoder=text_encoder, condition_encoder=condition_encoder,
    vae=part("AutoencoderOobleck", **OOBLECK, decoder_input_channels=8, sampling_rate=64),
    audio_tokenizer=partial(AceStepAudioTokenizer, **ACE_AUDIO, fsq_dim=16),
    audio_token_detokenizer=partial(AceStepAudioTokenDetokenizer, **ACE_AUDIO),
)  # fmt: skip


def run_ace_step(**arguments: Any) -> Any:
    return run(prompt="a prompt", audio_duration=3.0, **DECODED, **arguments)


# fmt: off
AUDIO_PIPELINES = [
    Pipeline(
        "ACE-Step",
        ACE_STEP,
        run_ace_step(),
        calls=[(1,) * STEPS],
        fast=True,
    ),
    Pipeline(
        "ACE-Step, guidance in the middle",
        ACE_STEP,
        # on from step 3, off from step 6: another batch needs computed steps, and those are in MASK
        run_ace_step(cfg_interval_start=0.15, cfg_interval_end=0.4),
        calls=[(1,) * STEPS],
        prompt=None,  # the batch of the guided call holds both prompts
    ),
    Pipeline(
        "ACE-Step, a cover",
        ACE_STEP,
        run_ace_step(task_type="cover", src_audio=noise(2, 192).tanh(), audio_cover_strength=0.6),
        calls=[(2,) * STEPS],  # the guided one, with both prompts, and one without the song that is covered
    ),
    Pipeline(
        "Stable Audio",
        build(
            "StableAudioPipeline", ("StableAudioDiTModel", dict(num_layers=3, global_states_input_dim=16)),
            scheduler=part("EDMDPMSolverMultistepScheduler"), projection_model=projection,
            vae=part("AutoencoderOobleck", **OOBLECK, decoder_input_channels=4, sampling_rate=16),
        ),
        run(**prompts(4, 8), **DECODED),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "Stable Audio 3",
        build(
            "StableAudio3Pipeline",
            ("StableAudio3DiTModel", dict(depth=3, global_cond_dim=16)), scheduler=flow,
            duration_embedder=partial(StableAudio3DurationEmbedder, output_dim=16, fourier_dim=8),
            vae=part(
                "AutoencoderSAME", patch_size=4, encoder_channels=8, encoder_c_mults=(1,), encoder_strides=(2,),
                encoder_transformer_depths=(1,), latent_dim=8, dim_heads=4, sampling_rate=32,
            ),
        ),
        run(
            **prompts(8, 16), **masks(6, 5, 8, "encoder_attention_mask"), duration=4.0, guidance_scale=3.0,
        ),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "LongCat",
        build(
            "LongCatAudioDiTPipeline", ("LongCatAudioDiTTransformer", dict(dit_depth=3)), scheduler=flow,
            tokenizer=tokenizer, text_encoder=text_encoder,
            vae=part(
                "LongCatAudioDiTVae", channels=4, c_mults=[1, 2], strides=[2], latent_dim=8, encoder_latent_dim=16,
                downsampling_ratio=2, sample_rate=8,
            ),
        ),
        run(prompt="a prompt", audio_duration_s=4.0),
        calls=[(2,) * STEPS],
    ),
]
# fmt: on
