"""Looks models of the registry up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusers_models import MODELS
from specs import Model

# Dynamo traces a model in a time that grows with its blocks.
_FEW_BLOCKS: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": dict(num_layers=2, num_single_layers=2),
    "HunyuanVideoTransformer3DModel": dict(num_layers=2, num_single_layers=2),
    "QwenImageTransformer2DModel": dict(num_layers=3),
    "SD3Transformer2DModel": dict(num_layers=3),
    "WanTransformer3DModel": dict(num_layers=3),
}


def registered(cls: str, variant: str = "", **config: Any) -> Model:
    """A class (its plain variant, unless one is named), with changes to its configuration."""
    spec = next(spec for spec in MODELS if spec.cls == cls and spec.variant == variant)
    return replace(spec, config=spec.config | config)


def few_blocks(cls: str, **config: Any) -> Model:
    """The same with as few blocks as make a chain: for tests of what does not depend on their number."""
    return registered(cls, **_FEW_BLOCKS[cls] | config)
