"""Small transformers with one trait each, and helpers to run them through the backend.

Each toy is an ordinary nn.Module ``model(x, t, ...)``; where reuse is tested it also says in plain eager code what a
reused step should give (``front``, ``region``, ``tail``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 16


def timestep_embedding(t: Tensor, width: int = WIDTH) -> Tensor:
    freqs = torch.exp(-torch.arange(width // 2, device=t.device) / width)
    angles = t[:, None].float() * freqs[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Block(nn.Module):
    """x + modulated MLP(norm(x))."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.shift = nn.Linear(width, width)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x) + self.shift(temb)[:, None])))


class Toy(nn.Module):
    """embed -> blocks -> head."""

    def __init__(self, depth: int = 6, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList([self.make_block(i, width) for i in range(depth)])
        self.head = nn.Linear(width, width)

    def make_block(self, index: int, width: int) -> nn.Module:
        return Block(width)

    def front(self, x: Tensor, t: Tensor) -> tuple[Any, ...]:
        temb = timestep_embedding(t)
        return self.blocks[0](self.embed(x), temb), temb

    def region(self, h: Tensor, temb: Tensor) -> Tensor:
        for block in self.blocks[1:]:
            h = block(h, temb)
        return h

    def tail(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.head(h)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, temb = self.front(x, t)
        return self.tail(self.region(h, temb), temb)


class TwoStreamBlock(nn.Module):
    """Two streams of equal shape; takes (a, b) and returns (b, a), as FLUX does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = Block(width), Block(width)
        self.mix = nn.Linear(width, width)

    def forward(self, a: Tensor, b: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        new_a = self.a(a, temb) + self.mix(b)
        new_b = self.b(b, temb) - self.mix(a)
        return new_b, new_a


class TwoStreams(Toy):
    def make_block(self, index: int, width: int) -> nn.Module:
        return TwoStreamBlock(width)

    def front(self, x: Tensor, t: Tensor) -> tuple[Any, ...]:
        temb = timestep_embedding(t)
        b, a = self.blocks[0](self.embed(x), self.embed(x.flip(1)), temb)
        return a, b, temb

    def region(self, a: Tensor, b: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        for block in self.blocks[1:]:
            b, a = block(a, b, temb)
        return a, b

    def tail(self, a: Tensor, b: Tensor, temb: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(a * 0.9 + b * b)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a, b, temb = self.front(x, t)
        a, b = self.region(a, b, temb)
        return self.tail(a, b, temb)


class HoistingBlock(Block):
    """Also returns a modulation of the time embedding alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.modulation = nn.Linear(width, width)

    def forward(self, x: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, temb), torch.nn.functional.silu(self.modulation(temb))


class Hoisting(Toy):
    """A middle block computes a modulation of the time embedding that the head reads."""

    def make_block(self, index: int, width: int) -> nn.Module:
        return HoistingBlock(width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = timestep_embedding(t)
        h = self.embed(x)
        for i, block in enumerate(self.blocks):
            h, modulation = block(h, temb)
            if i == 3:
                kept = modulation
        return self.head(h * (1 + kept[:, None]))


class LongSkips(nn.Module):
    """U-shaped: the second half of the blocks takes the outputs of the first half, last first."""

    def __init__(self, depth: int = 6, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.merge = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(depth // 2)])
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = timestep_embedding(t)
        h = self.embed(x)
        half, skips = len(self.blocks) // 2, []
        for i, block in enumerate(self.blocks):
            if i >= half:
                h = self.merge[i - half](torch.cat([h, skips.pop()], dim=-1))
            h = block(h, temb)
            if i < half:
                skips.append(h)
        return self.head(h)


class PassThrough(Toy):
    """The embedding goes around all blocks and is added at the end."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, temb = self.front(x, t)
        return self.tail(self.region(h, temb), temb) + self.embed(x)


class Glue(Toy):
    """Between blocks the loop adds a control signal (a ControlNet residual)."""

    def forward(self, x: Tensor, t: Tensor, control: Tensor | None = None) -> Tensor:
        temb = timestep_embedding(t)
        h = self.embed(x)
        for i, block in enumerate(self.blocks):
            h = block(h, temb)
            if control is not None:
                h = h + control[i]
        return self.head(h)


class NoBlocks(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x))) * t[:, None, None]


class Prompted(Toy):
    """With a prompt that is added to the stream, for tests of guidance branches."""

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        h, temb = self.front(x, t)
        return self.tail(self.region(h + prompt.mean(1, keepdim=True), temb), temb)


def latents(batch: int = 2, tokens: int = 5, seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


def moved(step: int) -> Tensor:
    """Latents at ``step`` of a trajectory: a tenth of the way to other latents per step."""
    return latents(seed=0) + 0.1 * step * latents(seed=1)


def timesteps(count: int, start: float = 1000.0) -> list[float]:
    return [start * (1 - i / count) for i in range(count)]


def compile_toy(model: nn.Module, **options: Any) -> Any:
    """``model`` through the backend with the ``eager`` inner compiler; every step reuses unless told otherwise."""
    torch.manual_seed(0)
    return torch.compile(model.eval(), backend="dit_cache", options={"inner": "eager", **options}, fullgraph=True)


def build(cls: type[nn.Module], seed: int = 0, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return cls(**kwargs).eval()
