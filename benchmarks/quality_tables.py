"""The tables that two policies need and that are measured on the model: MagCache's ratios, SenCache's sensitivities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Draw = Callable[[nn.Module], object]
"""Draws pictures with a transformer, in the place of the one that is measured."""


class Around(nn.Module):
    """Stands in a pipeline where ``model`` was."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)  # config, dtype, cache_context: the pipeline asks


class Recording(Around):
    """Runs ``model`` and keeps the inputs of every call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: list[dict[str, Any]] = []

    def forward(self, **inputs: Any) -> Any:
        self.calls.append(inputs)
        return self.model(**inputs)


@contextmanager
def effects(model: nn.Module) -> Iterator[list[Tensor]]:
    """What all but the first block do to the picture's tokens, (B, tokens, channels), of each call inside."""
    entries: list[Tensor] = []
    found: list[Tensor] = []
    hooks = [
        model.transformer_blocks[0].register_forward_hook(lambda _m, _i, output: entries.append(output[1])),
        model.single_transformer_blocks[-1].register_forward_hook(
            lambda _m, _i, output: found.append(output[1] - entries.pop())
        ),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def mag_ratios(model: nn.Module, branches: int, draw: Draw) -> list[float]:
    """MagCache's ratios |R_t| / |R_t-1| from step 1 on, R the effect; norms per token, ratios averaged over tokens,
    prompts and branches."""
    with effects(model) as found:
        draw(model)
    norms = [effect.norm(dim=-1) for effect in found]
    by_step = [torch.cat(norms[i : i + branches]) for i in range(0, len(norms), branches)]
    return [round(float((new / old).mean()), 4) for old, new in pairwise(by_step)]


@torch.no_grad()
def sensitivities(model: nn.Module, branches: int, draw: Draw) -> list[list[float]]:
    """SenCache's J_z and J_t of each step, as the policy takes them: the relative change of the effect that the latents
    of the next step make at the time of this one, over the relative change of the latents; and that of the next step's
    time at these latents, over its part of the run. The last step has those of the one before."""
    recording = Recording(model)
    draw(recording)
    calls = [recording.calls[i : i + branches] for i in range(0, len(recording.calls), branches)]
    rows = []
    for now, then in pairwise(calls):
        at_now = _effects(model, now)
        others = {
            name: _effects(model, [{**a, name: b[name]} for a, b in zip(now, then, strict=True)])
            for name in ("hidden_states", "timestep")
        }
        latents = [_change(a["hidden_states"], b["hidden_states"]) for a, b in zip(now, then, strict=True)]
        of_latents = _change(at_now, others["hidden_states"]) / (sum(latents) / len(latents))
        rows.append([round(of_latents, 4), round(_change(at_now, others["timestep"]) * len(calls), 4)])
    return [*rows, rows[-1]]


def _effects(model: nn.Module, calls: Sequence[dict[str, Any]]) -> Tensor:
    with effects(model) as found:
        for inputs in calls:
            model(**inputs)
    return torch.cat(found)


def _change(before: Tensor, now: Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())
