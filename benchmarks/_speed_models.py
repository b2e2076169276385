"""The models that speed.py compares on: shapes of published models, or small ones, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import full_size
import overhead
import torch
from _host_models import narrow_flux
from torch import nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """One model and its inputs.

    Attributes:
        build: the model in evaluation mode on a device ("cpu", "cuda").
        inputs: all arguments of a call but ``timestep``; ``hidden_states`` are the latents.
        timescale: the first timestep of a generation; the last one is above 0.
        together: how many processes, each with the model, are kept at a time. Their generations take turns.
    """

    title: str
    device: str
    build: Callable[[str], nn.Module]
    inputs: Callable[[nn.Module, str], Inputs]
    steps: int = 20
    timescale: float = 1.0
    together: int = 16


def generation_inputs(size: Size, inputs: Inputs) -> list[Inputs]:
    """The arguments of each step: slowly changing latents, a new object at each step, and falling timesteps."""
    latents = inputs["hidden_states"]
    steps = []
    for step in range(size.steps):
        latents = latents * 0.999
        time_left = torch.full((latents.shape[0],), size.timescale * (1 - step / size.steps), device=latents.device)
        steps.append({**inputs, "hidden_states": latents, "timestep": time_left.to(latents.dtype)})
    return steps


def _flux_inputs(tokens: int, text_tokens: int) -> Callable[[nn.Module, str], Inputs]:
    def inputs(model: nn.Module, device: str) -> Inputs:
        dtype = next(model.parameters()).dtype
        found = overhead.inputs_of(model, 1, device, dtype, tokens, text_tokens)
        if model.config.guidance_embeds:  # type: ignore[union-attr]
            found["guidance"] = torch.full((1,), 3.5, device=device, dtype=dtype)
        return found

    return inputs


def _random_bfloat16(make: Callable[[], nn.Module], device: str) -> nn.Module:
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(dtype)


def wan(device: str, layers: int = 30, heads: int = 12) -> nn.Module:
    """Wan 2.1 1.3B, bfloat16."""
    from diffusers import WanTransformer3DModel

    return _random_bfloat16(
        lambda: WanTransformer3DModel(num_attention_heads=heads, ffn_dim=8960, num_layers=layers), device
    )


def wan_inputs(model: nn.Module, device: str, shape: tuple[int, int, int] = (21, 60, 104)) -> Inputs:
    """Latents of 81 frames of 480 x 832 pixels, a prompt of 512 tokens."""
    draw = _drawing(device)
    return {
        "hidden_states": draw(1, 16, *shape), "encoder_hidden_states": draw(1, 512, 4096), "return_dict": False,
    }  # fmt: skip


def sd3(device: str, layers: int = 24, heads: int = 24) -> nn.Module:
    """Stable Diffusion 3.5 medium, bfloat16."""
    from diffusers import SD3Transformer2DModel

    return _random_bfloat16(
        lambda: SD3Transformer2DModel(
            sample_size=128, num_layers=layers, num_attention_heads=heads, caption_projection_dim=64 * heads,
            pos_embed_max_size=384, dual_attention_layers=tuple(range(min(13, layers))), qk_norm="rms_norm",
        ),
        device,
    )  # fmt: skip


def sd3_inputs(model: nn.Module, device: str, side: int = 128) -> Inputs:
    """Latents of 1024 x 1024 pixels, a prompt of 333 tokens."""
    draw = _drawing(device)
    return {
        "hidden_states": draw(1, 16, side, side), "encoder_hidden_states": draw(1, 333, 4096),
        "pooled_projections": draw(1, 2048), "return_dict": False,
    }  # fmt: skip


def _drawing(device: str) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, torch.bfloat16)


SIZES = {
    "medium": Size(
        "FLUX, 12 blocks of width 768, 72 tokens, float32",
        "cpu", lambda device: overhead.build("medium", device).requires_grad_(False), _flux_inputs(64, 8),
    ),
    "narrow": Size(
        "FLUX, 57 blocks of width 64, 72 tokens, float32",
        "cpu", lambda device: narrow_flux(57).to(device), _flux_inputs(64, 8),
    ),
    "flux": Size(
        "FLUX.1-dev, 1024 x 1024, bfloat16",
        "cuda", lambda device: full_size.build(full_size.Size(), device).transformer, _flux_inputs(4096, 512),
        steps=28, together=2,
    ),
    "wan": Size("Wan 2.1 1.3B, 480 x 832 x 81, bfloat16", "cuda", wan, wan_inputs, timescale=1000.0, together=4),
    "sd3": Size("SD3.5 medium, 1024 x 1024, bfloat16", "cuda", sd3, sd3_inputs, timescale=1000.0, together=4),
}  # fmt: skip
