"""What a reused step gives, against plain eager code that does the same by hand."""

import pytest
import torch
from toys import Glue, Hoisting, LongSkips, PassThrough, Toy, TwoStreams, build, compile_toy, latents

import dit_compile

REUSE = {"policy": "mask", "forecast": "reuse"}
T0, T1 = torch.full((2,), 900.0), torch.full((2,), 500.0)


def run(model, mask, calls, **options):
    # ``calls`` are no trajectory: without num_steps they would be taken for requests of one step each
    compiled = compile_toy(model, **{**REUSE, "step_mask": mask, "num_steps": len(calls), **options})
    with torch.no_grad():
        return [compiled(*call) for call in calls]


@torch.no_grad()
def test_reused_step_adds_the_old_residual_to_the_new_front():
    model = build(Toy)
    a, b = latents(seed=1), latents(seed=2)
    _, out = run(model, "10", [(a, T0), (b, T1)])
    h0, temb0 = model.front(a, T0)
    h1, temb1 = model.front(b, T1)
    torch.testing.assert_close(out, model.tail(h1 + (model.region(h0, temb0) - h0), temb1))


@torch.no_grad()
def test_two_streams_of_equal_shape_keep_their_own_residuals():
    model = build(TwoStreams)
    a, b = latents(seed=1), latents(seed=2)
    _, out = run(model, "10", [(a, T0), (b, T1)])
    first = model.front(a, T0)
    after = model.region(*first)
    now = model.front(b, T1)
    streams = [now[i] + (after[i] - first[i]) for i in range(2)]
    torch.testing.assert_close(out, model.tail(*streams, now[2]))


@torch.no_grad()
def test_a_modulation_computed_in_a_middle_block_is_fresh():
    """With the same latents only the time embedding changes; a cached modulation would give the old output."""
    model = build(Hoisting)
    x = latents(seed=1)
    first, out = run(model, "10", [(x, T0), (x, T1)])
    temb = [model_temb(T0), model_temb(T1)]
    h0 = model.blocks[0](model.embed(x), temb[0])[0]
    end = h0
    for block in model.blocks[1:]:
        end = block(end, temb[0])[0]
    h1 = model.blocks[0](model.embed(x), temb[1])[0]
    modulation = torch.nn.functional.silu(model.blocks[3].modulation(temb[1]))
    torch.testing.assert_close(out, model.head((h1 + end - h0) * (1 + modulation[:, None])))
    torch.testing.assert_close(first, model(x, T0))


def model_temb(t):
    from toys import timestep_embedding

    return timestep_embedding(t)


@torch.no_grad()
def test_long_skips_reuse_the_values_themselves():
    model = build(LongSkips)
    a = latents(seed=1)
    _, out = run(model, "10", [(a, T0), (latents(seed=2), T1)], bn=0)
    # F1 B0: everything behind block 0 is skipped and the stream has no twin, so the old output returns
    torch.testing.assert_close(out, model(a, T0))


@torch.no_grad()
@pytest.mark.parametrize("back", [1, 2, 3])
def test_long_skips_are_exact_when_nothing_changes(back):
    model = build(LongSkips)
    a = latents(seed=1)
    outs = run(model, "100", [(a, T0), (a, T0 - 1e-3), (a, T0 - 2e-3)], bn=back)
    for out in outs:
        torch.testing.assert_close(out, model(a, T0), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_pass_through_values_are_the_new_ones():
    model = build(PassThrough)
    a, b = latents(seed=1), latents(seed=2)
    _, out = run(model, "10", [(a, T0), (b, T1)])
    h0, temb0 = model.front(a, T0)
    h1, temb1 = model.front(b, T1)
    torch.testing.assert_close(out, model.tail(h1 + model.region(h0, temb0) - h0, temb1) + model.embed(b))


@torch.no_grad()
def test_control_signals_in_the_loop_are_exact_when_computed():
    """cache-dit adds only the first of them, once, at the end (reference: an error of 1.18 of an effect of 2.40)."""
    model, x = build(Glue), latents()
    control = torch.randn(6, 2, 5, 16, generator=torch.Generator().manual_seed(3))
    compiled = compile_toy(model, residual_diff_threshold=0.0)
    for t in (T0, T1):
        torch.testing.assert_close(compiled(x, t, control), model(x, t, control))
    assert (model(x, T0, control) - model(x, T0)).abs().max() > 0.1


@torch.no_grad()
def test_taylor_forecast_continues_a_line():
    """Blocks whose effect moves linearly from step to step are forecast exactly at order 1."""

    class Linear(Toy):
        def forward(self, x, t):
            h = self.embed(x)
            for block in self.blocks:
                h = h + block.up.weight[:16].sum() * t[:, None, None] * 1e-3
            return h * 2

    model, x = build(Linear), latents()
    compiled = compile_toy(model, policy="mask", step_mask="111100", forecast="taylorseer", taylor_order=1)
    for step in range(6):
        t = torch.full((2,), 900.0 - 100 * step)
        torch.testing.assert_close(compiled(x, t), model(x, t))
    assert [s.action for s in dit_compile.stats(model)[-1].steps] == ["compute"] * 4 + ["reuse"] * 2


@torch.no_grad()
def test_a_region_that_is_never_reused_computes_bitwise_what_eager_does():
    model = build(TwoStreams)
    compiled = compile_toy(model, residual_diff_threshold=0.0)
    for step in range(8):
        t = torch.full((2,), 900.0 - 100 * step)
        assert torch.equal(compiled(latents(seed=step), t), model(latents(seed=step), t))
    assert dit_compile.stats(model)[-1].reused == 0


@torch.no_grad()
def test_a_prompt_of_another_length_is_not_forecast_from_the_old_one():
    """Text and image meet in one stream: with a longer prompt the old snapshot has the wrong size."""

    class Joint(Toy):
        def forward(self, x, t, prompt):
            h, temb = self.front(torch.cat([x, prompt], dim=1), t)
            return self.tail(self.region(h, temb), temb)[:, : x.shape[1]]

    model, x = build(Joint), latents()
    compiled = torch.compile(
        model, backend="dit_cache", options={"inner": "eager", **REUSE, "step_mask": "1000"}, dynamic=True
    )
    short, long = latents(tokens=3, seed=4), latents(tokens=7, seed=5)
    for step, prompt in enumerate([short, short, long, long]):
        out = compiled(x + 0.1 * step, T0 - step, prompt)
        assert out.shape == x.shape
    steps = dit_compile.stats(model)[-1].steps
    assert [s.action for s in steps] == ["compute", "reuse", "compute", "reuse"]
    assert steps[2].reason == "no_snapshot"  # what was kept belonged to the other prompt
