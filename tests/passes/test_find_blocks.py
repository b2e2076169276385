"""The chain is what one residual stream runs through, whatever the modules are called."""

import itertools

import pytest
import torch
from tiny_models import TINY
from torch import nn
from toys import WIDTH, Block, Glue, LongSkips, NoBlocks, Toy, build, latents, timestep_embedding

from dit_compile.passes.find_blocks import find_blocks
from dit_compile.passes.find_period import find_period
from dit_compile.passes.normalize import normalize
from dit_compile.passes.plan import Refusal

INPUTS = (latents(), torch.full((2,), 500.0))


@pytest.mark.parametrize("name", TINY)
def test_finds_all_blocks_of_diffusers_models(name, capture):
    tiny = TINY[name]
    chain = find_blocks(normalize(capture(tiny.build(), **tiny.inputs())))
    assert len(chain) == tiny.blocks


def test_double_and_single_stream_blocks_are_one_chain(capture):
    chain = find_blocks(normalize(capture(TINY["flux"].build(), **TINY["flux"].inputs())))
    names = [f"transformer_blocks.{i}" for i in range(3)] + [f"single_transformer_blocks.{i}" for i in range(4)]
    assert [block.name for block in chain] == names
    assert [len(block.nodes) for block in chain] == [130, 130, 130, 71, 71, 71, 70]


def test_blocks_are_in_execution_order_and_disjoint(capture):
    gm = normalize(capture(build(Glue), *INPUTS, control=torch.randn(6, 2, 5, WIDTH)))
    chain = find_blocks(gm)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    spans = [(order[block.nodes[0]], order[block.nodes[-1]]) for block in chain]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    controls = {node for node in gm.graph.nodes if node.op == "placeholder" and "control" in node.name}
    glue = [user for node in gm.graph.nodes for user in node.users if controls & set(node.all_input_nodes)]
    assert len(glue) >= 6
    assert not set(glue) & {node for block in chain for node in block.nodes}


class Refined(Toy):
    """Text goes through refiners of its own before it meets the image in the blocks."""

    def __init__(self):
        super().__init__()
        self.refiners = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x, t, text):
        temb = timestep_embedding(t)
        for refiner in self.refiners:
            text = refiner(text, temb)
        h = torch.cat([self.embed(x), text], dim=1)
        for block in self.blocks:
            h = block(h, temb)
        return self.head(h[:, : x.shape[1]])


class BothRefined(Refined):
    """Image and text are refined apart and then concatenated."""

    def __init__(self):
        super().__init__()
        self.image_refiners = nn.ModuleList([Block() for _ in range(2)])

    def forward(self, x, t, text):
        temb = timestep_embedding(t)
        h = self.embed(x)
        for refiner in self.image_refiners:
            h = refiner(h, temb)
        for refiner in self.refiners:
            text = refiner(text, temb)
        h = torch.cat([h, text], dim=1)
        for block in self.blocks:
            h = block(h, temb)
        return self.head(h[:, : x.shape[1]])


@pytest.mark.parametrize("cls", [Refined, BothRefined])
def test_refiners_that_meet_in_one_stream_stay_in_front(cls, capture):
    chain = find_blocks(normalize(capture(build(cls), *INPUTS, latents(tokens=3))))
    assert {block.container for block in chain} == {"blocks"}


class Alternating(Toy):
    """Spatial and temporal blocks in turn, with a transposition between them."""

    def __init__(self):
        super().__init__(depth=3)
        self.temporal = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x, t):
        temb = timestep_embedding(t)
        h = self.embed(x)
        for spatial, temporal in zip(self.blocks, self.temporal, strict=True):
            h = spatial(h, temb)
            h = temporal(h.transpose(0, 1), temb[:1]).transpose(0, 1)
        return self.head(h)


def test_alternating_lists_are_one_chain(capture):
    chain = find_blocks(normalize(capture(build(Alternating), *INPUTS)))
    assert [block.container for block in chain] == ["blocks", "temporal"] * 3


def test_long_skips_do_not_hide_the_chain(capture):
    chain = find_blocks(normalize(capture(build(LongSkips), *INPUTS)))
    assert [block.index for block in chain if block.container == "blocks"] == list(range(6))


class PostNormBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x):
        return self.norm(x + self.down(torch.relu(self.up(x))))


class PostNorm(nn.Module):
    """No residual path runs through a norm; neighbours in a list that feed each other are a chain all the same."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([PostNormBlock() for _ in range(4)])

    def forward(self, x, t):
        x = x * t[:, None, None].cos()
        for layer in self.layers:
            x = layer(x)
        return x * 2


def test_post_norm_blocks_are_a_chain(capture):
    assert len(find_blocks(normalize(capture(build(PostNorm), *INPUTS)))) == 4


class Functional(nn.Module):
    """A loop over plain tensors: no module owns the blocks."""

    def __init__(self, depth=5):
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.1) for _ in range(depth)])

    def forward(self, x, t):
        h = x * t[:, None, None].cos()
        for w in self.w:
            y = torch.nn.functional.layer_norm(h, (WIDTH,))
            y = torch.nn.functional.gelu(y @ w)
            h = h + y * 0.5
        return h.relu()


def test_functional_loop_is_found_by_structure(capture):
    gm = normalize(capture(build(Functional), *INPUTS))
    chain = find_period(gm)
    assert len(chain) == 5
    assert {len(block.nodes) for block in chain} == {5}
    assert [block.container for block in find_blocks(gm)] == ["structure"] * 5


def test_stripped_metadata_falls_back_to_structure(capture):
    gm = normalize(capture(TINY["wan"].build(), **TINY["wan"].inputs()))
    for node in gm.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    assert len(find_blocks(gm)) >= 3


def test_no_blocks_is_refused(capture):
    with pytest.raises(Refusal, match=r"no chain of at least 3 repeated blocks.*lists of modules seen: none"):
        find_blocks(normalize(capture(build(NoBlocks), *INPUTS)))


def test_two_blocks_are_too_few(capture):
    with pytest.raises(Refusal, match="lists of modules seen: blocks"):
        find_blocks(normalize(capture(build(Toy, depth=2), *INPUTS)))
