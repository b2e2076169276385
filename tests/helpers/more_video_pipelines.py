"""Pipelines that make videos: all families but those of Wan, HunyuanVideo and LTX."""

from __future__ import annotations

import torch
from pipeline_parts import STEPS, flow, shifted
from pipelines import Pipeline
from video_parts import build, masks, part, prompts, run
from video_pipelines import FEW, HUNYUAN_VAE, IMAGE, SIZE, WAN_VAE

KARRAS_EULER = part("FlowMatchEulerDiscreteScheduler", use_karras_sigmas=True)
MAGVIT = part(
    "AutoencoderKLMagvit", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
    spatial_group_norm=False,
)  # fmt: skip
COGVIDEOX_VAE = part(
    "AutoencoderKLCogVideoX", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
)  # fmt: skip

COGVIDEOX = ("CogVideoXTransformer3DModel", FEW)
COSMOS = ("CosmosTransformer3DModel", FEW)


class SafetyChecker(torch.nn.Module):
    """The pipelines insist on one, but it would only look at prompts and at pictures."""

    device = torch.device("cpu")
    dtype = torch.float32


KANDINSKY_PROMPTS = dict(
    **prompts(7, 16, name="prompt_embeds_qwen"), **prompts(12, name="prompt_embeds_clip"),
    prompt_cu_seqlens=torch.tensor([0, 7]), negative_prompt_cu_seqlens=torch.tensor([0, 7]),
)  # fmt: skip


# fmt: off
MORE_VIDEO_PIPELINES = [
    Pipeline(
        "CogVideoX",
        build("CogVideoXPipeline", COGVIDEOX, scheduler=part("CogVideoXDPMScheduler")),
        run(**prompts(8, 16), num_frames=5),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "CogVideoX, dynamic guidance",
        build("CogVideoXPipeline", COGVIDEOX, scheduler=part("CogVideoXDDIMScheduler")),
        run(**prompts(8, 16), num_frames=5, use_dynamic_cfg=True),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "CogVideoX, image to video",
        build(
            "CogVideoXImageToVideoPipeline", ("CogVideoXTransformer3DModel", FEW | dict(in_channels=8)),
            scheduler=part("CogVideoXDDIMScheduler"), vae=COGVIDEOX_VAE,
        ),
        run(**prompts(8, 16), image=IMAGE, height=64, width=64, num_frames=5),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "Mochi",
        build(
            "MochiPipeline", ("MochiTransformer3DModel", FEW),
            scheduler=part("FlowMatchEulerDiscreteScheduler", invert_sigmas=True),
        ),
        run(**prompts(10, 16), **masks(7, 4, 10, dtype=torch.bool), height=32, width=32, num_frames=7),
        calls=[(1,) * STEPS],
        dynamo=dict(capture_dynamic_output_shape_ops=True),
    ),
    Pipeline(
        "Allegro",
        build("AllegroPipeline", ("AllegroTransformer3DModel", FEW), scheduler=part("EulerAncestralDiscreteScheduler")),
        run(**prompts(8, 8), **masks(6, 5, length=8), negative_prompt=None),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "Latte",
        build("LattePipeline", ("LatteTransformer3DModel", {}), scheduler=part("DDIMScheduler")),
        run(**prompts(8, 8), negative_prompt=None, video_length=3, height=64, width=64),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "EasyAnimate",
        build("EasyAnimatePipeline", ("EasyAnimateTransformer3DModel", {}), scheduler=shifted, vae=MAGVIT),
        run(**prompts(8, 16), **masks(6, 5, length=8), **SIZE),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "Cosmos",
        build(
            "CosmosTextToWorldPipeline", COSMOS, scheduler=part("EDMEulerScheduler", final_sigmas_type="sigma_min"),
            safety_checker=SafetyChecker,
        ),
        run(**prompts(12, 16), height=32, width=32, num_frames=9),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Cosmos 2, text to image",
        build(
            "Cosmos2TextToImagePipeline", COSMOS, scheduler=KARRAS_EULER,
            safety_checker=SafetyChecker,
        ),
        run(**prompts(12, 16), height=32, width=32),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Cosmos 2, video to world",
        build(
            "Cosmos2VideoToWorldPipeline", ("CosmosTransformer3DModel", FEW | dict(in_channels=5)),
            scheduler=KARRAS_EULER, safety_checker=SafetyChecker,
            vae=WAN_VAE,
        ),
        run(image=IMAGE, **prompts(12, 16), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Kandinsky 5",
        build("Kandinsky5T2VPipeline", ("Kandinsky5Transformer3DModel", dict(num_visual_blocks=3)), scheduler=flow),
        run(**KANDINSKY_PROMPTS, **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Kandinsky 5, image to video",
        build(
            "Kandinsky5I2VPipeline", ("Kandinsky5Transformer3DModel", dict(num_visual_blocks=3)), scheduler=flow,
            vae=HUNYUAN_VAE,
        ),
        run(**KANDINSKY_PROMPTS, image=IMAGE, height=32, width=32, num_frames=17),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Sana video, image to video",
        build(
            "SanaImageToVideoPipeline", ("SanaVideoTransformer3DModel", FEW),
            scheduler=part("FlowMatchEulerDiscreteScheduler"), vae=WAN_VAE,
        ),
        run(
            **prompts(8, 16), **masks(6, 5, length=8), negative_prompt=None, image=IMAGE, height=32, width=32, frames=5,
            use_resolution_binning=False,
        ),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "Sana video",
        build(
            "SanaVideoPipeline", ("SanaVideoTransformer3DModel", FEW),
            scheduler=part("DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True),
        ),
        run(
            **prompts(8, 16), **masks(6, 5, length=8), negative_prompt=None, height=32, width=32, frames=5,
            use_resolution_binning=False,
        ),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "AnyFlow",
        build("AnyFlowPipeline", ("AnyFlowTransformer3DModel", FEW), scheduler=part("FlowMapEulerDiscreteScheduler")),
        run(**prompts(8, 16), **SIZE, guidance_scale=3.0),
        calls=[(1,) * STEPS],
    ),
    Pipeline(
        "AnyFlow, two chunks",
        build(
            "AnyFlowFARPipeline", ("AnyFlowFARTransformer3DModel", FEW),
            scheduler=part("FlowMapEulerDiscreteScheduler"),
        ),
        run(**prompts(8, 16), height=32, width=32, num_frames=5, chunk_partition=[1, 1], guidance_scale=3.0),
        calls=[(1,) * STEPS],
        windows=[(1,) * STEPS],
        aside=lambda arguments: arguments["kv_cache_flag"]["is_cache_step"],
    ),
    Pipeline(
        "Motif",
        build(
            "MotifVideoPipeline",
            ("MotifVideoTransformer3DModel", dict(num_layers=2, num_single_layers=2, image_embed_dim=None)),
            scheduler=shifted, vae=WAN_VAE, guider=part("ClassifierFreeGuidance", guidance_scale=4.0),
        ),
        run(**prompts(10, 16), **masks(7, 4, length=10), **SIZE),
        calls=[(2,) * STEPS],
    ),
    Pipeline(
        "Helios, two chunks",
        build(
            "HeliosPipeline", ("HeliosTransformer3DModel", FEW), scheduler=part("HeliosScheduler", stages=1),
            vae=WAN_VAE,
        ),
        run(**prompts(12, 16), height=32, width=32, num_frames=10, num_latent_frames_per_chunk=2),
        calls=[(2,) * STEPS],
        windows=[(2,) * STEPS],
    ),
    Pipeline(
        "Helios, a pyramid",
        build(
            "HeliosPyramidPipeline", ("HeliosTransformer3DModel", FEW), vae=WAN_VAE,
            scheduler=part("HeliosScheduler", stages=2, gamma=0.3),
        ),
        run(
            **prompts(12, 16), height=64, width=64, num_frames=5, num_latent_frames_per_chunk=2,
            pyramid_num_inference_steps_list=[3, 5],  # the first of another size needs computing: it is in MASK
        ),
        calls=[(2,) * STEPS],
    ),
]
# fmt: on
