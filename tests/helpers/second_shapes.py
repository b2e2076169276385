"""Further shapes for models of the registry: what their inputs become at another resolution or prompt length.

Data only. Each entry is the part of ``Model.inputs`` that changes; the first of each list is the registry's own shape.
Sizes are never square twice in a row, so that height and width cannot be mixed up unnoticed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers_models import MODELS
from specs import B, Model, full, latents, normal, padded, per_sample

SIZES = ((8, 8), (8, 12), (16, 12), (12, 4))


def _images(*sizes: tuple[int, int], **more: Any) -> list[dict[str, Any]]:
    return [dict(hidden_states=latents(B, 4, height, width)) for height, width in sizes]


def _prompts(width: int, *lengths: int, mask: torch.dtype | None = None) -> list[dict[str, Any]]:
    masks = [
        {} if mask is None else dict(encoder_attention_mask=padded(length, length - 2, length - 3, dtype=mask))
        for length in lengths
    ]
    return [
        dict(encoder_hidden_states=normal(B, length, width), **mask)
        for length, mask in zip(lengths, masks, strict=True)
    ]


# fmt: off
RESOLUTIONS: dict[str, list[dict[str, Any]]] = {
    "AuraFlowTransformer2DModel": _images(*SIZES),
    "CogVideoXTransformer3DModel": [
        dict(
            hidden_states=latents(B, 2, 4, height, width),
            image_rotary_emb=(normal(height * width // 2, 16), normal(height * width // 2, 16)),
        ) for height, width in SIZES
    ],
    "FluxTransformer2DModel": [
        dict(hidden_states=latents(B, tokens, 4), img_ids=normal(tokens, 3)) for tokens in (16, 24, 48, 12)
    ],
    "HunyuanDiT2DModel": [
        dict(
            hidden_states=latents(B, 4, height, width),
            image_rotary_emb=(normal(height * width // 4, 8), normal(height * width // 4, 8)),
        ) for height, width in SIZES
    ],
    "LatteTransformer3DModel": [dict(hidden_states=latents(B, 4, 3, height, width)) for height, width in SIZES],
    "LTXVideoTransformer3DModel": [
        dict(
            hidden_states=latents(B, frames * height * width, 4), num_frames=frames, height=height, width=width,
        ) for frames, height, width in ((2, 3, 4), (3, 3, 5), (4, 6, 5), (2, 5, 2))
    ],
    "Lumina2Transformer2DModel": _images(*SIZES),
    "PixArtTransformer2DModel": _images(*SIZES),
    "QwenImageTransformer2DModel": [
        dict(hidden_states=latents(B, height * width, 16), img_shapes=per_sample([(1, height, width)]))
        for height, width in ((4, 4), (4, 6), (8, 6), (6, 2))
    ],
    "SD3Transformer2DModel": _images(*SIZES),
    "WanTransformer3DModel": [
        dict(hidden_states=latents(B, 4, frames, height, width))
        for frames, height, width in ((2, 8, 8), (3, 8, 12), (4, 16, 12), (2, 12, 4))
    ],
}
PROMPTS: dict[str, list[dict[str, Any]]] = {
    "AuraFlowTransformer2DModel": _prompts(32, 6, 9, 4),
    "CogVideoXTransformer3DModel": _prompts(16, 8, 40, 36),  # more text than image, too
    "FluxTransformer2DModel": [
        dict(encoder_hidden_states=normal(B, length, 32), txt_ids=normal(length, 3)) for length in (8, 11, 5)
    ],
    "LatteTransformer3DModel": _prompts(8, 8, 11, 5),
    "LTXVideoTransformer3DModel": _prompts(16, 10, 13, 5, mask=torch.bool),
    "Lumina2Transformer2DModel": _prompts(16, 10, 13, 5, mask=torch.int64),
    "PixArtTransformer2DModel": _prompts(16, 8, 11, 5, mask=torch.int64),
    "QwenImageTransformer2DModel": [
        dict(
            encoder_hidden_states=normal(B, length, 16),
            encoder_hidden_states_mask=padded(length, length - 2, length - 3, dtype=torch.bool),
        ) for length in (8, 11, 5)
    ],
    "SD3Transformer2DModel": _prompts(32, 6, 9, 4),
    "WanTransformer3DModel": _prompts(16, 8, 11, 5),
}
# Two pictures of as many tokens, one lying on its side.
TURNED: dict[str, list[dict[str, Any]]] = {
    "FluxTransformer2DModel": [dict(img_ids=normal(16, 3)), dict(img_ids=full(1.0, 16, 3))],
    "LTXVideoTransformer3DModel": [dict(height=3, width=4), dict(height=4, width=3)],
    "QwenImageTransformer2DModel": [
        dict(hidden_states=latents(B, 24, 16), img_shapes=per_sample([(1, *size)])) for size in ((4, 6), (6, 4))
    ],
    "SD3Transformer2DModel": [dict(hidden_states=latents(B, 4, *size)) for size in ((8, 12), (12, 8))],
}
# fmt: on
# Models that cost plain Dynamo more than two recompiles, too. Latte and PixArt reshape a grid for their position
# embedding, and sizes that divide each other get code of their own; Lumina2's blocks run in a frame behind a graph
# break, where Dynamo learns one shape later that the length of the stream changes.
SPECIALISED = {
    "LatteTransformer3DModel": "resolution",
    "Lumina2Transformer2DModel": "resolution",
    "PixArtTransformer2DModel": "resolution",
}


def at(name: str, *, resolution: int = 0, prompt: int = 0) -> Model:
    """The model ``name`` of the registry at another resolution and prompt length."""
    spec = next(spec for spec in MODELS if spec.name == name)
    changed = RESOLUTIONS[name][resolution] | (PROMPTS[name][prompt] if prompt else {})
    return replace(spec, inputs=spec.inputs | changed)
