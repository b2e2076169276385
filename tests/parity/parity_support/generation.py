"""The bundled emoji model and the one way in which all parity tests draw a picture with it."""

from __future__ import annotations

import copy

import torch
from diffusers import FluxPipeline
from parity_support.config import Trace
from torch import nn

from dit_compile.demo.codec import encode_prompts
from dit_compile.demo.pipeline import load_pipeline

STEPS = 28
PROMPT = "pizza on blue"


class Studio:
    """Loads the model once and hands out pipelines that share no state."""

    def __init__(self) -> None:
        self._pipe = load_pipeline()
        self.cond = encode_prompts([PROMPT])
        self.uncond = encode_prompts([""])

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
                "true_cfg_scale": 2.0,
                "negative_prompt_embeds": embeds,
                "negative_pooled_prompt_embeds": pooled,
            }
        embeds, pooled = self.cond
        try:
            trace.latents = pipe(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                height=128,
                width=128,
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **guidance,
            ).images
        finally:
            listener.remove()
        assert len(trace.outputs) == STEPS * branches
        return trace
