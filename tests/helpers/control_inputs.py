"""Models of the registry with the control inputs that their pipelines pass: data, and how a control is switched off.

Samples drift from step to step as latents do, as those of a ControlNet would. Where a model takes them, in the words of
its own loop: behind every block (most), behind blocks 1, 2, ... (Sana), on the long skips (Hunyuan-DiT), at the end of
each block (Cosmos), as hints computed from a control video (Wan-VACE).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from diffusers_models import MODELS
from specs import B, Model, latents, normal
from torch import Tensor
from torch.utils._pytree import tree_map

BY_NAME = {spec.name: spec for spec in MODELS}


def samples(count: int, *shape: Any) -> list[Any]:
    return [latents(*shape) for _ in range(count)]


# (class, variant, control inputs, changes of the config)
_TABLE: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "FluxTransformer2DModel",
        "both lists",
        dict(
            controlnet_block_samples=samples(2, B, 16, 32), controlnet_single_block_samples=samples(3, B, 16, 32)
        ),
        {},
    ),
    (
        "FluxTransformer2DModel",
        "repeated",
        dict(controlnet_block_samples=samples(3, B, 16, 32), controlnet_blocks_repeat=True),
        {},
    ),
    (
        "FluxTransformer2DModel",
        "single blocks only",
        dict(controlnet_single_block_samples=samples(4, B, 16, 32)),
        {},
    ),
    (
        "ChromaTransformer2DModel",
        "both lists",
        dict(
            controlnet_block_samples=samples(2, B, 16, 32), controlnet_single_block_samples=samples(2, B, 16, 32)
        ),
        {},
    ),
    (
        "BriaTransformer2DModel",
        "both lists",
        # Its loop adds them behind place `text length` of the image stream, hence 16 - 8 tokens.
        dict(
            controlnet_block_samples=samples(2, B, 16, 32), controlnet_single_block_samples=samples(2, B, 8, 32)
        ),
        {},
    ),
    ("BriaTransformer2DModel", "double blocks only", dict(controlnet_block_samples=samples(2, B, 16, 32)), {}),
    ("SD3Transformer2DModel", "", dict(block_controlnet_hidden_states=samples(2, B, 16, 32)), {}),
    ("QwenImageTransformer2DModel", "", dict(controlnet_block_samples=samples(2, B, 16, 32)), {}),
    ("SanaTransformer2DModel", "", dict(controlnet_block_samples=tuple(samples(2, B, 36, 16))), {}),
    ("SanaVideoTransformer3DModel", "", dict(controlnet_block_samples=tuple(samples(2, B, 32, 24))), {}),
    ("HunyuanDiT2DModel", "", dict(controlnet_block_samples=samples(2, B, 16, 16)), {}),
    (
        "CosmosTransformer3DModel",
        "",
        dict(block_controlnet_hidden_states=samples(2, B, 32, 24)),
        dict(controlnet_block_every_n=2),
    ),
    ("ZImageTransformer2DModel", "", dict(controlnet_block_samples={0: latents(B, 48, 32), 2: latents(B, 48, 32)}), {}),
    ("WanVACETransformer3DModel", "", dict(control_hidden_states_scale=normal(2)), {}),
]
