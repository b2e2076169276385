"""The graph that remains on top reads like the algorithm, and computes what the model computes."""

import expecttest
import pytest
import torch
from toys import Hoisting, LongSkips, PassThrough, Toy, TwoStreams, build, latents

from dit_compile.debug.dump import render, render_blocks, render_plan, render_uses
from dit_compile.passes.effects import effects_of
from dit_compile.passes.find_blocks import find_blocks
from dit_compile.passes.insert_guard import insert_guard
from dit_compile.passes.normalize import normalize
from dit_compile.passes.outline import Outliner
from dit_compile.passes.plan_region import plan_region

INPUTS = (latents(), torch.full((2,), 500.0))


def transform(gm, front=1, back=0, scope="chain", whole=False):
    normalize(gm)
    chain = find_blocks(gm)
    plan = plan_region(gm, chain, front=front, back=back, scope=scope)
    outliner = Outliner(whole=whole)
    top = insert_guard(gm, plan)
    outliner.outline(top)
    return top, outliner, plan


class AlwaysCompute:
    """Stands in for the runtime: every region runs."""

    def guard(self, region, entry, value):
        return self

    def run(self, region, operands, bases):
        return region(*operands)


def test_top_level_graph_of_a_six_block_toy(capture):
    top, outliner, plan = transform(capture(build(Toy), *INPUTS))
    effects = {name: effects_of(piece, name) for name, piece in outliner.pieces.items()}
    text = render_blocks(plan.chain) + render_plan(plan) + render(top) + render_uses(outliner, effects)
    expecttest.assert_expected_inline(
        text,
        """\
chain of 6 blocks
blocks.0      8 nodes  Block
blocks.1      8 nodes  Block
blocks.2      8 nodes  Block
blocks.3      8 nodes  Block
blocks.4      8 nodes  Block
blocks.5      8 nodes  Block
region_0: blocks.1 to blocks.5, F1 B0, skips 5 blocks
  probe   h (2, 5, 16) float32 - linear (2, 5, 16) float32
  leaves  h_5 (2, 5, 16) float32 = forecast of h + residual
clock:
  moving       l_x_
  timestep     l_t_
  conditioning -
def forward(step, l_t_, l_x_, *weights[52]):
    temb, linear, h, = front(l_t_, l_x_, *weights[10])
    decision_0 = guard(step, 0, entry=linear, value=h)
    h_5, = compute_or_forecast(decision_0, region_0, [h, temb, *weights[40]], bases=[h])
    linear_19, = tail(h_5, *weights[2])
    return (linear_19,)
# front_glue: compiled once, runs as front.glue
# blocks_0: compiled once, runs as blocks.0, blocks.1, blocks.2, blocks.3, blocks.4, blocks.5
# tail_glue: compiled once, runs as tail.glue
""",
    )


@pytest.mark.parametrize("cls", [Toy, TwoStreams, Hoisting, LongSkips, PassThrough])
@pytest.mark.parametrize(("front", "back"), [(1, 0), (2, 1), (1, 3)])
@pytest.mark.parametrize("whole", [False, True])
def test_computes_what_the_model_computes(cls, front, back, whole, capture):
    model = build(cls)
    gm = capture(model, *INPUTS)
    top, _, _ = transform(gm, front, back, whole=whole)
    places = [n for n in gm.graph.nodes if n.op == "placeholder"]
    assert [n.name for n in top.graph.nodes if n.op == "placeholder"][1:] == [n.name for n in places]
    seen = []

    def backend(graph, example_inputs):
        top, _, _ = transform(graph, front, back, whole=whole)

        def forward(*args):
            seen.append(len(args))
            return top(AlwaysCompute(), *args)

        return forward

    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend=backend)(*INPUTS), model(*INPUTS))
    assert seen


def test_identical_blocks_are_one_piece(capture):
    _, outliner, _ = transform(capture(build(Toy), *INPUTS))
    assert outliner.uses()["blocks_0"] == [f"blocks.{i}" for i in range(6)]
    assert sorted(outliner.pieces) == ["blocks_0", "front_glue", "tail_glue"]


def test_a_whole_segment_is_one_piece(capture):
    _, outliner, _ = transform(capture(build(Toy), *INPUTS), back=2, whole=True)
    assert list(outliner.uses().values()) == [
        ["front.glue to blocks.0"],
        ["blocks.1 to blocks.3"],
        ["blocks.4 to tail.glue"],
    ]
    region = outliner.pieces["blocks_1"]
    assert sum(node.target is torch.nn.functional.gelu for node in region.graph.nodes) == 3


def test_pieces_keep_what_aot_autograd_must_know(capture):
    """Without Dynamo's notes every weight would count as an input that changes at each call."""
    from torch._functorch._aot_autograd.frontend_utils import _try_get_metadata_from_dynamo

    _, outliner, _ = transform(capture(build(Toy), *INPUTS))
    for name, piece in outliner.pieces.items():
        inputs = [n for n in piece.graph.nodes if n.op == "placeholder"]
        _, static = _try_get_metadata_from_dynamo(piece, {}.keys(), len(inputs), [])
        weights = [i for i, n in enumerate(inputs) if "parameters" in n.name]
        assert weights, name
        assert static == weights


def test_no_block_number_is_a_constant_in_a_piece(capture):
    """A block's number inside its graph would make every block a piece of its own."""
    _, outliner, _ = transform(capture(build(Toy), *INPUTS))
    block = outliner.pieces["blocks_0"]
    numbers = {arg for node in block.graph.nodes for arg in node.args if isinstance(arg, int)}
    assert numbers <= {16}  # the width that layer_norm normalises over
    assert "blocks_" not in block.code.replace("l_self_modules_blocks_modules_0", "")


def test_a_dropped_output_does_not_split_the_class(capture):
    """The last block's second stream is not read: still the same block."""

    class OneRead(TwoStreams):
        def tail(self, a, b, temb):
            return self.head(a)

    _, outliner, _ = transform(capture(build(OneRead), *INPUTS))
    assert len(outliner.uses()["blocks_0"]) >= 5
