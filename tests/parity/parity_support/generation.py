"""The bundled emoji model and the one way in which all parity tests draw a picture with it."""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any

import torch
from diffusers import FluxPipeline
from parity_support.config import Trace
from torch import nn

from dit_compile.demo.codec import encode_prompts
from dit_compile.demo.pipeline import MODEL_DIR, load_pipeline

STEPS = 28
PROMPT = "pizza on blue"
NEGATIVE_PROMPT = ""
GUIDANCE = 2.0  # of two branches
SIZE = 128


@functools.cache
def scene() -> dict[str, Any]:
    """What all pictures have in common: part of the keys of stored traces."""
    weights = hashlib.sha256()
    for path in [*sorted((MODEL_DIR / "transformer").iterdir()), *sorted((MODEL_DIR / "scheduler").iterdir())]:
        weights.update(path.read_bytes())
    settings = {"steps": STEPS, "prompt": PROMPT, "negative": NEGATIVE_PROMPT, "guidance": GUIDANCE, "size": SIZE}
    return {**settings, "model": weights.hexdigest()}


class Studio:
    """Loads the model once and hands out pipelines that share no state."""

    def __init__(self) -> None:
        self._pipe = load_pipeline()
        self.cond = encode_prompts([PROMPT])
        self.uncond = encode_prompts([NEGATIVE_PROMPT])

    def transformer(self) -> nn.Module:
        return copy.deepcopy(self._pipe.transformer).eval()

    def pipeline(self, transformer: nn.Module, kind: type[FluxPipeline] = FluxPipeline) -> FluxPipeline:
        pipe = kind(**{**self._pipe.components, "scheduler": copy.deepcopy(self._pipe.scheduler)})
        pipe.transformer = transformer
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: FluxPipeline, branches: int, seed: int = 0) -> Trace:
        """Run ``pipe``: one transformer call per step, or two with an empty negative prompt at guidance 2."""
        trace = Trace()
        listener = pipe.transformer.register_forward_hook(
            lambda module, args, output: trace.outputs.append(output[0].clone())
        )
        guidance = {"true_cfg_scale": 1.0}
        if branches == 2:
            embeds, pooled = self.uncond
            guidance = {
                "true_cfg_scale": GUIDANCE,
                "negative_prompt_embeds": embeds,
                "negative_pooled_prompt_embeds": pooled,
            }
        embeds, pooled = self.cond
        try:
            trace.latents = pipe(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                height=SIZE,
                width=SIZE,
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **guidance,
            ).images
        finally:
            listener.remove()
        assert len(trace.outputs) == STEPS * branches
        return trace
