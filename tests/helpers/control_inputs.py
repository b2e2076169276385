"""Models of the registry with the control inputs that their pipelines pass, and loops in which a control is switched.

Data first. The samples drift from step to step as latents do, like those of a ControlNet. Where a model's own loop
takes them: behind every block (FLUX, Chroma, Bria, Qwen), behind all but the last (SD3), behind blocks 1, 2, ...
(Sana), behind the layers that a dict names (Z-Image), on the long skips (Hunyuan-DiT), as the last thing inside a block
(Cosmos). Wan-VACE computes hints from a control video in front of its blocks and scales them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from registry import registered
from specs import B, Model, latents, ones
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Controlled:
    """``names`` are the arguments that carry the control, and what they are called with."""

    spec: Model
    names: tuple[str, ...]
    optional: bool = True  # whether they may be None

    @property
    def name(self) -> str:
        return self.spec.name


def _of(cls: str, variant: str = "", *, config: Any = None, more: Any = None, **control: Any) -> Controlled:
    plain = registered(cls, **config or {})
    return Controlled(replace(plain, inputs=plain.inputs | control | (more or {}), variant=variant), tuple(control))


def _samples(count: int, *shape: Any) -> list[Any]:
    return [latents(B, *shape) for _ in range(count)]


# fmt: off
CONTROLLED = [
    _of(
        "FluxTransformer2DModel", "both lists",
        controlnet_block_samples=_samples(2, 16, 32), controlnet_single_block_samples=_samples(3, 16, 32),
    ),
    _of(
        "FluxTransformer2DModel", "repeated",
        controlnet_block_samples=_samples(3, 16, 32), more=dict(controlnet_blocks_repeat=True),
    ),
    _of("FluxTransformer2DModel", "one sample for all", controlnet_block_samples=_samples(1, 16, 32)),
    _of("FluxTransformer2DModel", "single blocks", controlnet_single_block_samples=_samples(4, 16, 32)),
    _of("ChromaTransformer2DModel", "double blocks", controlnet_block_samples=_samples(2, 16, 32)),
    _of(
        "ChromaTransformer2DModel", "both lists",
        controlnet_block_samples=_samples(2, 16, 32), controlnet_single_block_samples=_samples(2, 16, 32),
    ),
    _of("BriaTransformer2DModel", "double blocks", controlnet_block_samples=_samples(2, 16, 32)),
    _of(
        "BriaTransformer2DModel", "both lists",  # it adds those of the single blocks from the text's length (8) on
        controlnet_block_samples=_samples(2, 16, 32), controlnet_single_block_samples=_samples(2, 8, 32),
    ),
    _of("SD3Transformer2DModel", "control", block_controlnet_hidden_states=_samples(2, 16, 32)),
    _of("QwenImageTransformer2DModel", "control", controlnet_block_samples=_samples(2, 16, 32)),
    _of("SanaTransformer2DModel", "control", controlnet_block_samples=tuple(_samples(2, 36, 16))),
    _of("SanaVideoTransformer3DModel", "control", controlnet_block_samples=tuple(_samples(2, 32, 24))),
    _of("HunyuanDiT2DModel", "control", controlnet_block_samples=_samples(2, 16, 16)),
    _of(
        "CosmosTransformer3DModel", "control",
        block_controlnet_hidden_states=_samples(2, 32, 24), config=dict(controlnet_block_every_n=2),
    ),
    _of(
        "ZImageTransformer2DModel", "control",
        controlnet_block_samples=dict(zip((0, 2), _samples(2, 64, 32), strict=True)),
    ),
    replace(
        _of("WanVACETransformer3DModel", "scale", control_hidden_states_scale=ones(2, dtype=torch.float32)),
        optional=False,
    ),
]
# fmt: on
BY_NAME = {controlled.name: controlled for controlled in CONTROLLED}


class Loop:
    """The calls of one generation as pipelines make them: what stays is one object, the rest is new each time.

    One step moves time and latents by ``pace`` steps of the registry, so that neighbours are close.
    """

    def __init__(self, controlled: Controlled, pace: float = 0.1, seed: int = 1) -> None:
        self.controlled, self.pace, self.seed = controlled, pace, seed
        self._first = self._inputs(0)

    def call(self, index: int, control: float | None = 1.0) -> dict[str, Any]:
        """The arguments at step ``index``, with the control multiplied by ``control`` or, for None, left out."""
        names = self.controlled.names
        now = {name: value for name, value in self._inputs(index).items() if name not in names or control is not None}
        held = {name: self._held(value, self._first[name]) for name, value in now.items() if name not in names}
        return held | {name: tree_map(lambda t: t * control, now[name]) for name in names if name in now}

    def _inputs(self, index: int) -> dict[str, Any]:
        return self.controlled.spec.call(self.pace * index, steps=40, seed=self.seed)  # type: ignore[arg-type]

    def _held(self, now: Any, first: Any) -> Any:
        if isinstance(now, dict):
            return {name: self._held(now[name], first[name]) for name in now}
        if isinstance(now, (list, tuple)):
            return type(now)(map(self._held, now, first))
        return first if isinstance(now, Tensor) and torch.equal(now, first) else now


# The ControlNet of a model: its class, what its config says beyond the model's, what its samples are called, its image.
_NETS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[int, ...]]] = {
    "FluxTransformer2DModel": (
        "FluxControlNetModel",
        dict(num_layers=2, num_single_layers=2),
        ("controlnet_block_samples", "controlnet_single_block_samples"),
        (1, 16, 4),
    ),
    "SD3Transformer2DModel": (
        "SD3ControlNetModel", dict(num_layers=2), ("block_controlnet_hidden_states",), (1, 4, 8, 8)
    ),
    "QwenImageTransformer2DModel": (
        "QwenImageControlNetModel", dict(num_layers=2), ("controlnet_block_samples",), (1, 16, 16)
    ),
}  # fmt: skip
WITH_NETS = tuple(_NETS)


class NetLoop(Loop):
    """A loop in which a real ControlNet runs at every step; a scale of 0 multiplies its samples, as pipelines do."""

    def __init__(self, cls: str, pace: float = 0.1, seed: int = 1) -> None:
        name, config, self.names, size = _NETS[cls]
        plain = registered(cls)
        super().__init__(Controlled(plain, ()), pace, seed)
        self._net = Model(name, plain.config | config, {}, chain=()).build(seed=7)
        self._image = torch.randn(size, generator=torch.Generator().manual_seed(11))

    def call(self, index: int, control: float | None = 1.0) -> dict[str, Any]:
        call = super().call(index)
        if control is None:
            return call
        made = self._net(**call, controlnet_cond=self._image, conditioning_scale=control)
        return call | dict(zip(self.names, made if isinstance(made, tuple) else (made,), strict=True))
