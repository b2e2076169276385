"""Tiny parts of pipelines, and how a pipeline is called with them: embeddings in, latents out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image
from pipelines import Pipeline
from registry import registered
from torch import Tensor

STEPS = 8
MOST = STEPS * 3 // 4  # of a run that begins with a picture and a strength of 0.75
ONE = (1,) * STEPS  # calls of each step: one prompt, or both in a batch
TWO = (2,) * STEPS

Shapes = Mapping[str, Sequence[int]]

flow = partial(FlowMatchEulerDiscreteScheduler, shift=3.0)
shifted = partial(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True)  # by the number of tokens


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def picture(size: int, channels: int = 3) -> Tensor:
    return noise(1, channels, size, size, seed=7).clamp(-1, 1) / 2 + 0.5


def both(**shapes: Sequence[int]) -> Shapes:
    """The shapes of a prompt and of a negative prompt."""
    return shapes | {f"negative_{name}": shape for name, shape in shapes.items()}


def assembled(cls: type, **parts: Any) -> Callable[[], Any]:
    """Builds a pipeline of ``parts``, without those that are not named. What can be called makes its part."""
    arguments = inspect.signature(cls).parameters.values()
    absent = dict.fromkeys(argument.name for argument in arguments if argument.default is argument.empty)

    def build() -> Any:
        made = {name: part() if callable(part) else part for name, part in parts.items()}
        return cls(**absent | made)

    return build


def running(shapes: Shapes, **arguments: Any) -> Callable[..., Tensor]:
    """A run with new embeddings of these shapes, equal ones in every run, and these arguments or ``more``."""

    def run(pipe: Any, seed: int, **more: Any) -> Tensor:
        torch.manual_seed(seed)  # some pipelines encode a picture without the generator they are given
        embeddings = {name: noise(*shape, seed=place) for place, (name, shape) in enumerate(shapes.items())}
        call = dict(num_inference_steps=STEPS, generator=generator(seed), output_type="latent")
        return pipe(**embeddings, **call | arguments | more).images

    return run


def single(
    name: str,
    cls: type,
    model: str,
    scheduler: Callable[..., Any],
    run: Callable[..., Tensor],
    calls: Sequence[int],
    *,
    variant: str = "",
    config: dict[str, Any] | None = None,
    parts: dict[str, Any] | None = None,
    fast: bool = False,
    prompt: str | None = "encoder_hidden_states",
) -> Pipeline:
    """A pipeline of one transformer, which the registry knows."""
    transformer = registered(model, variant, **config or {}).build
    build = assembled(cls, transformer=transformer, scheduler=scheduler, **parts or {})
    return Pipeline(name, build, run, [calls], fast=fast, prompt=prompt)


def run_guided(length: int, dim: int, negative: int | None = None, **arguments: Any) -> Callable[..., Tensor]:
    """With a prompt and a negative prompt of ``negative`` tokens."""
    shapes = dict(prompt_embeds=(1, length, dim), negative_prompt_embeds=(1, negative or length, dim))
    return running(shapes, **dict(height=64, width=64) | arguments)


def masks(dtype: torch.dtype = torch.int64, suffix: str = "", length: int = 6) -> dict[str, Tensor]:
    """The negative prompt is the shorter one."""
    real = torch.arange(length).unsqueeze(0)
    return {
        f"prompt_attention_mask{suffix}": (real < length).to(dtype),
        f"negative_prompt_attention_mask{suffix}": (real < 4).to(dtype),
    }


def embeds_masks(length: int) -> dict[str, Tensor]:
    """What some pipelines call the masks; this time nothing is padded."""
    real = torch.ones(1, length, dtype=torch.bool)
    return dict(prompt_embeds_mask=real, negative_prompt_embeds_mask=real.clone())


def vae(latent_channels: int, **config: Any) -> Callable[[], AutoencoderKL]:
    """An autoencoder that does not change the size of an image."""

    def build() -> AutoencoderKL:
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8,), layers_per_block=1, latent_channels=latent_channels, norm_num_groups=1,
            shift_factor=0.1, scaling_factor=0.5, **config,
        ).eval().requires_grad_(False)  # fmt: skip

    return build


def drawing(size: int) -> Image.Image:
    return Image.fromarray((picture(size)[0] * 255).byte().permute(1, 2, 0).numpy())


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Parameters that are zero until they are trained would leave the model without any effect."""
    for place, parameter in enumerate(model.parameters()):
        parameter.data = 0.1 * noise(*parameter.shape, seed=place)
    return model.eval().requires_grad_(False)


class Words:
    """A tokenizer or a text encoder, for a pipeline that takes no embeddings."""

    dtype = torch.float32

    def __call__(self, given: Any, **_: Any) -> SimpleNamespace:
        if not isinstance(given, Tensor):
            ids = torch.tensor([[len(word) for word in text.split()] for text in given])
            return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))
        seed = int(given.sum())
        return SimpleNamespace(hidden_states=[noise(*given.shape, 32, seed=seed + layer) for layer in range(9)])
