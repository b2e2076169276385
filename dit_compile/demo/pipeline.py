"""The bundled model, or another of its kind, as an ordinary ``FluxPipeline``, and one call that draws with it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from dit_compile.demo import codec

FluxPipeline: TypeAlias = Any
"""``diffusers.FluxPipeline``. diffusers makes its classes on demand, which type checkers cannot follow."""

MODEL_DIR = Path(__file__).parent / "emoji_flux"
REQUIRED = {
    "diffusers": "diffusers",
    "transformers": "transformers",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "matplotlib": "matplotlib",
}


class MissingDemoDependency(ImportError):
    """A package of the ``demo`` extra is not installed."""


def require_demo_dependencies() -> None:
    """Raise :class:`MissingDemoDependency`, naming every absent package and the command that installs them."""
    missing = [package for module, package in REQUIRED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDemoDependency(
            f'The demo needs {", ".join(missing)}. Install it with: pip install "dit-compile[demo]"'
        )


def known_subjects() -> list[str]:
    """The names the model can draw, in the order of its model card."""
    return (MODEL_DIR / "prompts.txt").read_text(encoding="utf-8").splitlines()


def read_codec(folder: Path = MODEL_DIR) -> codec.CodecConfig:
    """What the prompts and pictures of the model in ``folder`` look like: its ``codec.json``."""
    return codec.CodecConfig(**json.loads((folder / "codec.json").read_text(encoding="utf-8")))


def load_pipeline(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, folder: Path = MODEL_DIR
) -> FluxPipeline:
    """The transformer of ``folder``, by default the bundled one, and its scheduler in a ``FluxPipeline`` without text
    encoders and VAE.

    Nothing is downloaded. Prompts go in through :func:`dit_compile.demo.codec.encode_prompts`; diffusers' own
    progress bar is off.
    """
    require_demo_dependencies()
    diffusers: Any = importlib.import_module("diffusers")
    # low_cpu_mem_usage would ask for accelerate, to save the copy of five megabytes
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=dtype, low_cpu_mem_usage=False, local_files_only=True
    )
    return wrap_transformer(transformer.to(device).eval().requires_grad_(False))


def wrap_transformer(transformer: torch.nn.Module) -> FluxPipeline:
    """A ``FluxPipeline`` of its own around ``transformer``, which may be compiled or belong to another pipeline."""
    diffusers: Any = importlib.import_module("diffusers")
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(MODEL_DIR / "scheduler"),
        transformer=transformer,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: FluxPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 28,
    true_cfg_scale: float = 2.0,
    on_step: Callable[[int], None] | None = None,
    config: codec.CodecConfig = codec.EMOJI,
) -> torch.Tensor:
    """Draw ``prompts`` as one batch and return the final packed latents (B, image tokens, 48).

    ``seeds`` has one number per prompt. The noise is drawn on the CPU, so a seed gives the same picture on every
    device up to rounding, and alone as in a batch. ``on_step`` is called with the index of each finished step.
    ``config`` is that of the model's folder, see :func:`read_codec`.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, but {len(seeds)} were given")
    device, dtype = pipe.transformer.device, pipe.transformer.dtype

    def after_step(_pipe: Any, index: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(index)
        return {}

    embeds, pooled = (tensor.to(device, dtype) for tensor in codec.encode_prompts(prompts, config))
    empty, empty_pooled = (tensor.to(device, dtype) for tensor in codec.encode_prompts([""] * len(prompts), config))
    shape = (1, config.image_tokens, codec.IMAGE_CHANNELS)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    tokens: torch.Tensor = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=empty,
        negative_pooled_prompt_embeds=empty_pooled,
        true_cfg_scale=true_cfg_scale,
        height=config.pipeline_size,
        width=config.pipeline_size,
        num_inference_steps=steps,
        latents=noise.to(device, dtype),
        output_type="latent",
        callback_on_step_end=after_step if on_step is not None else None,
        callback_on_step_end_tensor_inputs=[],
    ).images
    return tokens
