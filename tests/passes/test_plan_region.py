"""What is skipped, which streams are forecast from which base, and what is computed in front instead."""

import pytest
import torch
from tiny_models import TINY
from toys import Glue, Hoisting, LongSkips, PassThrough, Toy, TwoStreams, build, latents

from dit_compile.passes.find_blocks import find_blocks
from dit_compile.passes.normalize import normalize
from dit_compile.passes.plan_region import plan_region
from dit_compile.passes.wiring import twin_by_wiring

INPUTS = (latents(), torch.full((2,), 500.0))


def plan_of(gm, front=1, back=0, scope="chain"):
    normalize(gm)
    return plan_region(gm, find_blocks(gm), front=front, back=back, scope=scope)


def stream_before(gm, number):
    """The value that block ``number`` takes as its first activation, read off the graph."""
    blocks = find_blocks(gm)
    return next(n for n in blocks[number].nodes[0].all_input_nodes if n.op != "placeholder")


def test_base_is_the_stream_at_the_entry(capture):
    gm = capture(build(Toy), *INPUTS)
    plan = plan_of(gm, front=2)
    (region,) = plan.regions
    (exit,) = region.exits
    assert exit.base is stream_before(gm, 2) is region.probe_value
    assert region.probe_entry is stream_before(gm, 0)
    assert (region.front, region.back, region.skipped) == (2, 0, 4)


def test_two_streams_of_equal_shape_are_told_apart_by_wiring(capture):
    gm = capture(build(TwoStreams), *INPUTS)
    (region,) = plan_of(gm).regions
    first, second = region.exits
    blocks = find_blocks(gm)
    # each block computes new_a before new_b: the first value that leaves is a, and block 1 reads a first
    reads = [n for node in blocks[1].nodes for n in node.all_input_nodes if n in set(blocks[0].nodes)]
    a, b = dict.fromkeys(reads)
    assert (first.base, second.base) == (a, b)


def test_wiring_alone_tells_streams_apart(capture):
    """Without residual paths (blocks that are not additive) the wiring of equal blocks has to do."""
    gm = capture(build(TwoStreams), *INPUTS)
    (region,) = plan_of(gm).regions
    place = {node: i for i, node in enumerate(gm.graph.nodes)}
    wired = [twin_by_wiring(exit.node, region.blocks, place, region.start) for exit in region.exits]
    assert wired == [exit.base for exit in region.exits]
    assert None not in wired


def test_values_without_a_stream_are_hoisted(capture):
    (region,) = plan_of(capture(build(Hoisting), *INPUTS)).regions
    assert len(region.exits) == 1
    assert {getattr(node.target, "__name__", node.target) for node in region.hoisted} == {"linear", "silu"}


def test_a_hoisted_computation_stays_out_of_blocks_that_skip(capture):
    (region,) = plan_of(capture(build(Toy), *INPUTS)).regions
    assert region.hoisted == frozenset()


def test_long_skip_without_twin_is_forecast_itself(capture):
    (region,) = plan_of(capture(build(LongSkips), *INPUTS), front=1, back=1).regions
    # block 5 merges with the output of block 0, which is in front; only the stream leaves the region
    assert [exit.base for exit in region.exits] == [None]
    (region,) = plan_of(capture(build(LongSkips), *INPUTS), front=1, back=3).regions
    assert len(region.exits) == 2  # the stream, and the output of block 1 for the merge before block 4
    assert sum(exit.base is not None for exit in region.exits) == 1


def test_pass_through_is_left_alone(capture):
    gm = capture(build(PassThrough), *INPUTS)
    (region,) = plan_of(gm).regions
    assert len(region.exits) == 1
    assert region.exits[0].base is stream_before(gm, 1)


def test_glue_between_blocks_belongs_to_the_region(capture):
    gm = capture(build(Glue), *INPUTS, control=torch.randn(6, 2, 5, 16))
    (region,) = plan_of(gm).regions
    (exit,) = region.exits
    # F = 1: the control added behind block 0 is in front, where the guard sees it
    control = next(node for node in gm.graph.nodes if "control" in node.name)
    assert set(control.users) & set(region.probe_value.all_input_nodes)
    assert exit.base is region.probe_value
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    assert sum(region.start <= order[node] < region.stop for node in control.users) == 4  # behind blocks 1 to 4


def test_container_scope_plans_one_region_per_list(capture):
    tiny = TINY["flux"]
    plan = plan_of(capture(tiny.build(), **tiny.inputs()), scope="container")
    double, single = plan.regions
    assert (len(double.blocks), len(single.blocks)) == (3, 4)
    assert len(double.exits) == 2
    assert len(single.exits) == 1
    assert single.probe_entry in {exit.node for exit in double.exits}


@pytest.mark.parametrize(
    ("front", "back", "used"), [(8, 0, (5, 0)), (1, 8, (1, 4)), (3, 3, (2, 3)), (6, 6, (1, 4)), (2, 3, (2, 3))]
)
def test_front_and_back_are_clamped_with_a_note(front, back, used, capture):
    plan = plan_of(capture(build(Toy), *INPUTS), front=front, back=back)
    (region,) = plan.regions
    assert (region.front, region.back) == used
    assert region.skipped >= 1
    assert bool(plan.notes) == ((front, back) != used)
    if plan.notes:
        assert "Set fn and bn (DIT_CACHE_FN, DIT_CACHE_BN) to a sum below 6" in plan.notes[0]


def test_clock_inputs_of_flux(capture):
    tiny = TINY["flux"]
    clock = plan_of(capture(tiny.build(), **tiny.inputs())).clock_inputs
    assert [node.name.removeprefix("l_").removeprefix("kwargs_") for node in clock.moving] == ["hidden_states_"]
    assert "timestep" in clock.timestep.name
    assert {"encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids"} == {
        node.name.removeprefix("l_").removeprefix("kwargs_").rstrip("_") for node in clock.conditioning
    }
    assert len(clock.owner) == len(dict(tiny.build().named_parameters()))


@pytest.mark.parametrize("name", TINY)
def test_timestep_is_recognised(name, capture):
    tiny = TINY[name]
    clock = plan_of(capture(tiny.build(), **tiny.inputs())).clock_inputs
    assert "timestep" in clock.timestep.name
    assert all("hidden_states" in node.name and "encoder" not in node.name for node in clock.moving)


def test_scalars_that_a_loop_makes_anew_are_no_conditioning(capture):
    """A guidance scale of a new identity at every call would make every call look like another branch."""

    class Guided(Toy):
        def forward(self, x, t, prompt, guidance):
            h, temb = self.front(x, t)
            return self.tail(self.region(h + prompt.mean(1, keepdim=True) * guidance[:, None, None], temb), temb)

    gm = capture(build(Guided), *INPUTS, latents(tokens=3), torch.full((2,), 3.5))
    clock = plan_of(gm).clock_inputs
    assert [node.name for node in clock.conditioning] == ["l_prompt_"]
    assert [node.name for node in clock.moving] == ["l_x_"]
    assert clock.timestep.name == "l_t_"
