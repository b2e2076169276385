"""Transformers drawn at random: what blocks do inside, how they return, which lists hold them and how often they run.

``structures()`` is a hypothesis strategy of ``Structure``; ``Structure.build()`` gives the model and ``oracle`` says in
plain eager code what a step that reuses regions must return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from toys import WIDTH, timestep_embedding

HALF = WIDTH // 2


@torch.library.custom_op("dit_structures::accumulate", mutates_args={"x"})
def accumulate(x: Tensor, y: Tensor) -> None:
    x.add_(y)


@torch.library.custom_op("dit_structures::mixed", mutates_args=())
def mixed(x: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(x) + y


@mixed.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


class Scaled(torch.autograd.Function):
    """A function with a forward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        return torch.tanh(x) * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


# What a block may compute; ``variant`` differs from block to block and must keep blocks apart.
REFUSED = ("op_stream", "random")  # writes into the stream of another block, draws random numbers
KINDS = (
    "mlp", "slice", "chunk", "cond", "flex", "op", "op_private", "inplace", "setitem", "autograd", "constant", "map",
    *REFUSED,
)  # fmt: skip


class Block(nn.Module):
    """One drawn block."""

    def __init__(self, spec: BlockSpec, variant: int, shared: nn.Linear | None) -> None:
        super().__init__()
        self.spec, self.variant = spec, variant
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH) if shared is None else shared
        self.inner_mix = nn.Linear(HALF, HALF)
        self.shift = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("offset", torch.randn(WIDTH) * 0.1 if spec.buffer else None)

    def forward(self, x: Tensor, temb: Tensor) -> Any:
        shift = self.shift(temb)[:, None]
        if self.spec.kind == "slice":
            a, b = x[..., :HALF], x[..., HALF:]
            a = a + torch.tanh(self.inner_mix(b) + shift[..., :HALF])
            out = torch.cat([a, b + torch.tanh(self.inner_mix(a))], -1)
        elif self.spec.kind == "chunk":
            a, b = x.chunk(2, dim=-1)
            out = torch.cat([a + shift[..., HALF:], b + torch.tanh(self.inner_mix(a))], -1)
        elif self.spec.kind == "inplace":
            x += self.inner(x, shift)
            out = x
        elif self.spec.residual == "scaled":
            out = 0.7 * x + self.inner(x, shift)
        elif self.spec.residual == "post_norm":
            out = self.norm(x + self.inner(x, shift))
        else:
            out = x + self.inner(self.norm(x), shift)
        if self.offset is not None:
            out = out + self.offset
        return {"tensor": out, "tuple": (shift, out), "dict": {"sample": out, "shift": shift}}[self.spec.output]

    def inner(self, x: Tensor, shift: Tensor) -> Tensor:
        step = 0.25 * (1 + self.variant)
        y = self.mix(x) + shift
        kind = self.spec.kind
        if kind == "cond":
            return torch.cond(y.sum() > -1e9, lambda a: torch.tanh(a) * step, lambda a: a * 1.0, (y,))
        if kind == "map":
            return torch._higher_order_ops.map(lambda row: torch.tanh(row) * step, y)
        if kind == "flex":
            return self.attention(y)
        if kind == "op":
            return torch.ops.dit_structures.mixed(y, step * x)
        if kind == "op_private":
            y = torch.tanh(y)
            torch.ops.dit_structures.accumulate(y, y=step * x)
            return y
        if kind == "op_stream":
            torch.ops.dit_structures.accumulate(x, step * y)
            return y
        if kind == "setitem":
            y = torch.tanh(y)
            y[:, 1:] = y[:, :-1] * step
            return y
        if kind == "autograd":
            return Scaled.apply(y, step)
        if kind == "constant":
            return torch.tanh(y) * torch.tensor([step, 1.0, -step, 0.5]).repeat(WIDTH // 4)
        if kind == "random":
            return y + 0.1 * torch.randn_like(y)
        return torch.tanh(y) * step

    def attention(self, y: Tensor) -> Tensor:
        def causal(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return torch.where(q >= k, score, -10.0)

        def reverse(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return torch.where(q <= k, score, -10.0)

        heads = y[:, None]
        return flex_attention(heads, heads, heads, score_mod=(causal, reverse, None)[self.variant % 3])[:, 0]


@dataclass(frozen=True)
class BlockSpec:
    """What all blocks of a list have in common."""

    kind: str
    residual: str
    output: str
    buffer: bool


@dataclass(frozen=True)
class ListSpec:
    """A list of blocks: the dotted ``name`` of its attribute, the variant of each block, one weight for all or not."""

    name: str
    block: BlockSpec
    variants: tuple[int, ...]
    shared: bool


@dataclass(frozen=True)
class Structure:
    """A model and the settings that shape its graph."""

    lists: tuple[ListSpec, ...]
    runs: int
    parallel: bool
    fn: int
    bn: int
    scope: str
    pieces: str
    inner: str

    @property
    def refused(self) -> bool:
        """Whether some block does what forbids skipping it."""
        return any(spec.block.kind in REFUSED for spec in self.lists)

    def build(self) -> Drawn:
        torch.manual_seed(0)
        return Drawn(self).eval().requires_grad_(False)

    def options(self) -> dict[str, Any]:
        shape = {"fn": self.fn, "bn": self.bn, "scope": self.scope, "pieces": self.pieces, "inner": self.inner}
        return {**shape, "policy": "mask", "step_mask": "1010", "forecast": "reuse"}


class Drawn(nn.Module):
    """embed -> all lists, once or several times -> head; parallel runs start from the embedding each."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.runs, self.parallel = structure.runs, structure.parallel
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.lists = [spec.name for spec in structure.lists]
        self.names: list[str] = []
        for spec in structure.lists:
            shared = nn.Linear(WIDTH, WIDTH) if spec.shared else None
            blocks = nn.ModuleList([Block(spec.block, variant, shared) for variant in spec.variants])
            self._put(spec.name, blocks)
            self.names += [f"{spec.name}.{i}" for i in range(len(blocks))]

    def _put(self, name: str, blocks: nn.ModuleList) -> None:
        parent: nn.Module = self
        *holders, last = name.split(".")
        for holder in holders:
            if not hasattr(parent, holder):
                parent.add_module(holder, nn.Module())
            parent = getattr(parent, holder)
        parent.add_module(last, blocks)

    def calls(self) -> list[tuple[str, nn.Module]]:
        """(name, block) in the order of execution."""
        found = []
        for run in range(self.runs):
            suffix = f" (run {run + 1})" if run else ""
            found += [(name + suffix, self.get_submodule(name)) for name in self.names]
        return found

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = timestep_embedding(t)
        h = self.embed(x)
        results = []
        for run in range(self.runs):
            if run and self.parallel:
                h = self.embed(x * (1 + run))
            for name in self.lists:
                blocks = self
                for attribute in name.split("."):
                    blocks = getattr(blocks, attribute)
                for block in blocks:
                    h = stream(block(h, temb))
            results.append(h)
        return self.head(sum(results)) if self.parallel else self.head(h)


def stream(output: Any) -> Tensor:
    """The residual stream in what a block returns."""
    return output["sample"] if isinstance(output, dict) else output[1] if isinstance(output, tuple) else output


class Oracle:
    """The same model in eager code with regions that can be skipped: (first, last, base) by the blocks' names."""

    def __init__(self, model: Drawn, regions: Sequence[tuple[str, str, str]]) -> None:
        names = [name for name, _ in model.calls()]
        self.model = model
        self.regions = {names.index(first): (names.index(last), base) for first, last, base in regions}
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def step(self, x: Tensor, t: Tensor, *, reuse: bool) -> Tensor:
        model, calls = self.model, self.model.calls()
        temb = timestep_embedding(t)
        h = model.embed(x)
        results, place = [], 0
        while place < len(calls):
            run = place // len(model.names)
            if run and model.parallel and place % len(model.names) == 0:
                results.append(h)
                h = model.embed(x * (1 + run))
            last, base = self.regions.get(place, (place, ""))
            entry = h.clone()
            if base and reuse:
                before, after = self.kept[place]
                h = after.clone() if base == "none" else entry + (after - before)
            else:
                for _, block in calls[place : last + 1]:
                    h = stream(block(h, temb))
                self.kept[place] = (entry, h.clone())
            place = last + 1
        results.append(h)
        return model.head(sum(results)) if model.parallel else model.head(h)


NAMES = (
    ("blocks",), ("single.blocks", "single_blocks"), ("a_b.c", "a.b_c"), ("fn.blocks", "blocks"), ("graph", "code"),
    ("_orig_mod_blocks",), ("layers.0", "layers_0"), ("self.blocks", "blocks"), ("forward_", "front"),
)  # fmt: skip


@st.composite
def structures(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> Structure:
    """Structures of three to twelve blocks."""
    lists = []
    names = draw(st.sampled_from(NAMES))
    for name in names:
        block = BlockSpec(
            kind=draw(st.sampled_from(kinds)),
            residual=draw(st.sampled_from(("pre_norm", "pre_norm", "scaled", "post_norm"))),
            output=draw(st.sampled_from(("tensor", "tuple", "dict"))),
            buffer=draw(st.booleans()),
        )
        variants = tuple(draw(st.lists(st.integers(0, 2), min_size=3, max_size=4 if len(names) == 1 else 3)))
        lists.append(ListSpec(name, block, variants, shared=draw(st.booleans())))
    runs = draw(st.sampled_from((1, 1, 2) if len(names) == 1 else (1, 1, 1, 1, 1, 2)))
    return Structure(
        lists=tuple(lists),
        runs=runs,
        parallel=runs > 1 and draw(st.booleans()),
        fn=draw(st.integers(1, 3)),
        bn=draw(st.integers(0, 2)),
        scope=draw(st.sampled_from(("chain", "container", "block"))),
        pieces=draw(st.sampled_from(("block", "segment"))),
        inner=draw(st.sampled_from(("eager", "eager", "eager", "aot_eager"))),
    )
