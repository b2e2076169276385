"""A few full paths through Inductor, whose C++ compiler takes its time."""

import dataclasses

import pytest
import torch
from tiny_models import TINY
from toys import Toy, build, latents, moved

import dit_compile

pytestmark = pytest.mark.slow


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "depth"), [("flux", {"num_layers": 1, "num_single_layers": 2}), ("wan", {"num_layers": 3})]
)
def test_threshold_zero_equals_plain_inductor(name, depth):
    tiny = dataclasses.replace(TINY[name], config={**TINY[name].config, **depth})
    model, inputs = tiny.build(), tiny.inputs(batch=2)
    expected = torch.compile(model, fullgraph=True)(**inputs)[0]
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend="dit_cache", fullgraph=True, options={"residual_diff_threshold": 0, "size_asserts": True}
    )
    torch.testing.assert_close(compiled(**inputs)[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_skipped_blocks_as_one_piece():
    model = build(Toy, depth=4)
    options = {"policy": "mask", "step_mask": "110", "pieces": "segment", "warmup_steps": 0}
    compiled = torch.compile(model, backend="dit_cache", options=options)
    before = torch._dynamo.utils.counters["dit_cache"]["pieces"]
    outs = [compiled(moved(step), torch.full((2,), 900.0 - step)) for step in range(3)]
    assert torch._dynamo.utils.counters["dit_cache"]["pieces"] - before == 3
    for step in range(2):
        expected = model(moved(step), torch.full((2,), 900.0 - step))
        torch.testing.assert_close(outs[step], expected, atol=1e-5, rtol=1e-5)
    assert dit_compile.stats(model)[-1].reused == 1


@torch.no_grad()
def test_reused_steps_and_a_new_resolution():
    model = build(Toy)
    compiled = torch.compile(
        model, backend="dit_cache", options={"policy": "mask", "step_mask": "110", "size_asserts": True}, dynamic=True
    )
    for tokens in (5, 9):
        for step in range(3):
            x = latents(tokens=tokens) + 0.1 * step * latents(tokens=tokens, seed=1)
            t = torch.full((2,), 900.0 - step)
            out = compiled(x, t)
            if step < 2:
                torch.testing.assert_close(out, model(x, t), atol=1e-5, rtol=1e-5)
            else:
                assert (out - model(x, t)).abs().max() < 5
        assert dit_compile.stats(model)[-1].reused == 1


@torch.no_grad()
def test_mode_and_options_reach_inductor():
    model, x, t = build(Toy, depth=3), latents(), torch.full((2,), 900.0)
    seen = {}
    import torch._inductor.compile_fx as module

    real = module.compile_fx

    def spy(gm, inputs, config_patches=None, **kwargs):
        seen.update(config_patches or {})
        return real(gm, inputs, config_patches=config_patches, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compile_fx", spy)
        compiled = torch.compile(model, backend="dit_cache", options={"max_autotune": False, "epilogue_fusion": False})
        torch.testing.assert_close(compiled(x, t), model(x, t), atol=1e-5, rtol=1e-5)
    assert seen == {"max_autotune": False, "epilogue_fusion": False, "size_asserts": False}
