"""What specs of pipelines are written with: how to build one of tiny random parts, and how to call it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from pipeline_parts import STEPS, generator, noise
from registry import registered
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast


def build(cls: str, *transformers: tuple[str, dict[str, Any]], **parts: Any) -> Callable[[], Any]:
    """Builds the pipeline ``cls``. ``transformers`` are those of the registry with changes to their configuration; a
    part is a value or a function that makes it, and what is left out is None."""

    def make() -> Any:
        pipeline = getattr(diffusers, cls)
        taken = inspect.signature(pipeline.__init__).parameters.values()
        needed = [parameter.name for parameter in taken if parameter.default is parameter.empty][1:]
        models = {
            "transformer" + (f"_{place + 1}" if place else ""): registered(name, **config).build(seed=place)
            for place, (name, config) in enumerate(transformers)
        }
        torch.manual_seed(0)
        made = {name: part() if callable(part) else part for name, part in parts.items()}
        return pipeline(**dict.fromkeys(needed) | models | made)

    return make


def run(**arguments: Any) -> Callable[[Any, int], Tensor]:
    """Calls the pipeline; it gets new tensors at every run, as from its text encoders."""

    def call(pipe: Any, seed: int) -> Tensor:
        fresh = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        torch.manual_seed(seed)  # some pipelines also draw without the generator that they are given
        usual = dict(generator=generator(seed), output_type="latent")
        if "num_inference_steps" in inspect.signature(pipe.__call__).parameters:
            usual["num_inference_steps"] = STEPS
        made = pipe(**usual | fresh)[0]
        return made if isinstance(made, Tensor) else made[-1]

    return call


def prompts(*shape: int, name: str = "prompt_embeds") -> dict[str, Tensor]:
    """Of the prompt and of the negative prompt."""
    return {name: noise(1, *shape, seed=1), f"negative_{name}": noise(1, *shape, seed=2)}


def masks(
    real: int, negative: int, length: int, name: str = "prompt_attention_mask", dtype: torch.dtype = torch.int64
) -> dict[str, Tensor]:
    """As many ones as the prompt, and as the negative prompt, has tokens."""
    rows = [(torch.arange(length) < tokens).to(dtype)[None] for tokens in (real, negative)]
    return {name: rows[0], f"negative_{name}": rows[1]}


def part(cls: str, **config: Any) -> Callable[[], Any]:
    """A scheduler or a model of diffusers."""

    def make() -> Any:
        made = getattr(diffusers, cls)(**config)
        return made.eval().requires_grad_(False) if isinstance(made, torch.nn.Module) else made

    return make


def tokenizer() -> PreTrainedTokenizerFast:
    """Knows no word: of a prompt only the length counts."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, "<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
