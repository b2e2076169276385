"""The model that is trained, its loss, and one step of training.

Rectified flow, as diffusers' FluxPipeline samples it: x(sigma) = (1 - sigma) * picture + sigma * noise, the model is
given sigma and predicts noise - picture. Muon for the matrices inside the blocks, AdamW for the rest, a cosine
schedule; what is saved is an exponential moving average of the weights.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _train_muon import Muon
from _train_pictures import PictureData, on_device
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from dit_compile.demo import codec
from dit_compile.demo.pipeline import MODEL_DIR, generate, wrap_transformer
from dit_compile.demo.result import psnr

ATTRIBUTION = """\
These weights were trained on, and closely reproduce, pictures of Noto Emoji v2.048, Copyright Google LLC, licensed
under the Apache License, Version 2.0 (https://github.com/googlefonts/noto-emoji). The pictures were taken from the npm
package emoji-datasource-google 16.0.0, MIT License, Copyright (c) Cal Henderson (https://github.com/iamcal/emoji-data).
"""
UNIFORM_SIGMAS = 0.3
RAMP_STEPS, FINAL_RATE = 100, 0.01


@dataclass(frozen=True)
class Size:
    """How large a model is: heads of 32 channels, double-stream and single-stream blocks."""

    heads: int
    layers: int
    single_layers: int


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. ``decay`` is that of the moving average."""

    batch: int
    muon_rate: float
    adam_rate: float
    decay: float
    half: bool = False  # bfloat16 autocast; weights, gradients and optimizers stay float32
    backend: str | None = None  # of torch.compile, which then compiles the blocks


def new_transformer(size: Size, config: codec.CodecConfig) -> FluxTransformer2DModel:
    """The bundled architecture at another size; modulations and the head start at zero, so that every block starts as
    the identity."""
    architecture = dict(FluxTransformer2DModel.load_config(MODEL_DIR / "transformer"))
    architecture |= {
        "num_attention_heads": size.heads, "num_layers": size.layers, "num_single_layers": size.single_layers,
        "joint_attention_dim": config.text_channels, "pooled_projection_dim": config.text_channels,
    }  # fmt: skip
    model = FluxTransformer2DModel.from_config(architecture)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            modulates = "norm" in name and name.endswith(".linear")
            torch.nn.init.zeros_(module.bias)
            if modulates or name == "proj_out":
                torch.nn.init.zeros_(module.weight)
            else:
                torch.nn.init.xavier_uniform_(module.weight)
    return model


def flow_loss(model: Callable[..., Any], data: PictureData, size: int, device: torch.device) -> Tensor:
    """Mean squared error of the velocity on one batch; most noise levels are drawn from the middle of the path."""
    pictures, prompts = data.batch(size)
    clean = codec.encode_pictures(pictures.to(device))
    noise = torch.randn_like(clean)
    middle = torch.sigmoid(torch.randn(size, device=device))
    uniform = torch.rand(size, device=device) < UNIFORM_SIGMAS
    sigma = torch.where(uniform, torch.rand(size, device=device), middle)
    embeds, pooled = (on_device(tensor, device) for tensor in codec.encode_prompts(prompts, data.config))
    velocity = model(
        hidden_states=torch.lerp(clean, noise, sigma[:, None, None]),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=sigma,
        img_ids=on_device(codec.position_ids(data.config), device),
        txt_ids=torch.zeros(data.config.text_tokens, 3, device=device),
        return_dict=False,
    )[0]
    return F.mse_loss(velocity.float(), noise - clean)


class Trainer:
    """The model, the moving average that is saved, and both optimizers."""

    def __init__(self, data: PictureData, size: Size, recipe: Recipe, device: torch.device) -> None:
        self.data, self.recipe, self.device = data, recipe, device
        self.model = new_transformer(size, data.config).to(device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        if recipe.backend:  # each kind of block once: compiling the whole would take minutes of the run
            self.model.compile_repeated_blocks(backend=recipe.backend)
        self.step, self.seconds = 0, 0.0
        self._loss = torch.tensor(math.nan, device=device)  # read when it is shown: a read waits for the GPU
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, weight in self.model.named_parameters():
            inside = "transformer_blocks." in name and ".norm" not in name and weight.ndim == 2
            (matrices if inside else others).append(weight)
        adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers = ((Muon(matrices, lr=recipe.muon_rate), recipe.muon_rate), (adam, recipe.adam_rate))

    @property
    def loss(self) -> float:
        """The mean of the last fifty steps or so."""
        return self._loss.item()

    def advance(self, progress: float) -> None:
        """One step; ``progress`` is the finished part of the run, in [0, 1]."""
        ramp = min(1.0, (self.step + 1) / RAMP_STEPS)
        cosine = FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.half):
            loss = flow_loss(self.model, self.data, self.recipe.batch, self.device)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * ramp * cosine
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(self.recipe.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        loss = loss.detach()
        self._loss = torch.where(self._loss.isnan(), loss, torch.lerp(self._loss, loss, 0.02))

    def save(self, out: Path) -> None:
        """The averaged weights in half precision, the scheduler and the codec, laid out as the bundled model is; the
        attribution that belongs to them; the prompts to measure with, where the data has its own."""
        copy.deepcopy(self.average).half().save_pretrained(out / "transformer")
        FlowMatchEulerDiscreteScheduler.from_pretrained(MODEL_DIR / "scheduler").save_pretrained(out / "scheduler")
        (out / "NOTICE").write_text(ATTRIBUTION)
        (out / "codec.json").write_text(json.dumps(asdict(self.data.config)) + "\n")
        if prompts := self.data.prompts():
            (out / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "data": self.data.random.bit_generator.state,
            "noise": torch.get_rng_state(),
            "device_noise": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken; its tensors are on the CPU. Raises RuntimeError where the model had
        another size."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        self._loss = torch.tensor(state["loss"], device=self.device)
        self.data.random.bit_generator.state = state["data"]
        torch.set_rng_state(state["noise"])
        if self.device.type == "cuda" and state["device_noise"] is not None:
            torch.cuda.set_rng_state(state["device_noise"], self.device)

    def draw_samples(self, path: Path, columns: int = 8, steps: int = 28) -> float:
        """A sheet with the data's examples: trained pictures, and below each row of them what the model draws for the
        same prompts. Returns the median PSNR between the two in dB."""
        trained, prompts = self.data.examples()
        pipe = wrap_transformer(self.average)
        tokens = generate(pipe, prompts, range(len(prompts)), steps, config=self.data.config)
        pairs = trained.permute(0, 2, 3, 1).cpu().numpy(), codec.decode_float(tokens)
        rows = []
        for i in range(0, len(prompts), columns):
            for pictures in pairs:
                row = [*codec.to_uint8(pictures[i : i + columns])]
                rows.append(np.concatenate(row + [np.full_like(row[0], 255)] * (columns - len(row)), axis=1))
        Image.fromarray(np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1)).save(path)
        return float(np.median(psnr(*pairs)))
