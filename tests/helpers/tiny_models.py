"""Tiny diffusers transformers with random weights, as data: class name, config, inputs of one call.

Every entry has at least three blocks. ``shapes`` are those of the inputs without the batch, ``unbatched`` those that
have none, ``constants`` anything else (called with the batch size where it is callable), ``optional`` what only some
versions of diffusers take (and those need it).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Tiny:
    cls: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # without the batch dimension
    unbatched: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    optional: dict[str, Any] = field(default_factory=dict)
    blocks: int = 0
    time_scale: float = 1000.0

    def build(self, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model: torch.nn.Module = self._class()(**self.config).eval()
        return model

    def _class(self) -> Any:
        import diffusers

        return getattr(diffusers, self.cls)

    def inputs(self, batch: int = 1, seed: int = 1, **shapes: tuple[int, ...]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        sizes = {**self.shapes, **shapes}
        kwargs: dict[str, Any] = {n: torch.randn(batch, *size, generator=generator) for n, size in sizes.items()}
        kwargs |= {n: torch.randn(size, generator=generator) for n, size in self.unbatched.items()}
        taken = inspect.signature(self._class().forward).parameters
        constants = self.constants | {n: v for n, v in self.optional.items() if n in taken}
        kwargs |= {n: v(batch) if callable(v) else v for n, v in constants.items()}
        kwargs["timestep"] = torch.full((batch,), self.time_scale)
        return {**kwargs, "return_dict": False}


FLUX = Tiny(
    cls="FluxTransformer2DModel",
    config=dict(
        patch_size=1, in_channels=4, num_layers=3, num_single_layers=4, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    ),
    shapes=dict(hidden_states=(16, 4), encoder_hidden_states=(8, 32), pooled_projections=(32,)),
    unbatched=dict(img_ids=(16, 3), txt_ids=(8, 3)),
    blocks=7,
    time_scale=1.0,
)  # fmt: skip

WAN = Tiny(
    cls="WanTransformer3DModel",
    config=dict(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=256, ffn_dim=32, num_layers=4, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ),
    shapes=dict(hidden_states=(4, 2, 8, 8), encoder_hidden_states=(6, 16)),
    blocks=4,
)  # fmt: skip

SD3 = Tiny(
    cls="SD3Transformer2DModel",
    config=dict(
        sample_size=16, patch_size=1, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    ),
    shapes=dict(hidden_states=(4, 8, 8), encoder_hidden_states=(6, 32), pooled_projections=(64,)),
    blocks=4,
)  # fmt: skip

PIXART = Tiny(
    cls="PixArtTransformer2DModel",
    config=dict(
        sample_size=8, num_layers=4, patch_size=2, attention_head_dim=16, num_attention_heads=2, in_channels=4,
        cross_attention_dim=32, caption_channels=24, attention_bias=True, out_channels=8, norm_num_groups=1,
        num_embeds_ada_norm=8,
    ),
    shapes=dict(hidden_states=(4, 8, 8), encoder_hidden_states=(6, 24)),
    constants=dict(added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    blocks=4,
)  # fmt: skip

QWEN = Tiny(
    cls="QwenImageTransformer2DModel",
    config=dict(
        patch_size=2, in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    ),
    shapes=dict(hidden_states=(16, 16), encoder_hidden_states=(7, 16)),
    constants=dict(
        encoder_hidden_states_mask=lambda batch: torch.ones(batch, 7).long(),
        img_shapes=lambda batch: [(1, 4, 4)] * batch,
    ),
    optional=dict(txt_seq_lens=lambda batch: [7] * batch),
    blocks=4,
    time_scale=1.0,
)  # fmt: skip

TINY = {"flux": FLUX, "wan": WAN, "sd3": SD3, "pixart": PIXART, "qwen": QWEN}
