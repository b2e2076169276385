"""The bundled model without a pipeline: what the benchmarks with a sampling loop of their own share."""

from __future__ import annotations

import copy
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_compile.demo import codec
from dit_compile.demo.pipeline import known_subjects, load_pipeline
from dit_compile.demo.result import psnr

Model = Callable[..., Any]


def plain_and_cached() -> tuple[Model, Model]:
    """The model as it is, and a copy of it through the backend without Inductor, both on one thread."""
    torch.set_num_threads(1)
    model = load_pipeline().transformer
    cached = torch.compile(copy.deepcopy(model), backend="dit_cache", fullgraph=True, options={"inner": "eager"})
    return model, cached


def subjects(count: int) -> list[str]:
    """``count`` subjects that lie evenly in the list of those the model knows."""
    return known_subjects()[:: len(known_subjects()) // count][:count]


def prompt(subject: str) -> dict[str, Any]:
    """All arguments of a call but latents and time; the same tensors for each call of a loop."""
    embeds, pooled = codec.encode_prompts([subject])
    return {
        "encoder_hidden_states": embeds, "pooled_projections": pooled, "img_ids": codec.position_ids(),
        "txt_ids": torch.zeros(embeds.shape[1], 3), "return_dict": False,
    }  # fmt: skip


def noise(seed: int) -> Tensor:
    """Latents, float32 (1, 64, 48)."""
    return torch.randn(1, codec.EMOJI.image_tokens, codec.IMAGE_CHANNELS, generator=torch.Generator().manual_seed(seed))


def latents_psnr(wanted: Tensor, got: Tensor) -> float:
    """In dB, of the pictures that the latents stand for."""
    return psnr(codec.decode_float(wanted), codec.decode_float(got))[0]


def write_result(out: Path | None, **result: Any) -> None:
    """Writes ``result`` as JSON, with torch's version, the device and the command."""
    facts = {"torch": torch.__version__, "device": platform.machine(), "command": " ".join(sys.argv)}
    if out is not None:
        out.write_text(json.dumps({**facts, **result}, indent=1) + "\n")
