"""Real diffusers transformers with random weights, whole."""

import pytest
import torch
from tiers import slow_unless
from tiny_models import TINY

import dit_compile

pytestmark = pytest.mark.filterwarnings("ignore")
EACH = pytest.mark.parametrize("name", slow_unless(lambda name: name == "wan", TINY, str))


@torch.no_grad()
@EACH
@pytest.mark.parametrize("options", [{"enabled": False}, {"residual_diff_threshold": 0.0}], ids=["off", "threshold 0"])
def test_one_frame_and_equal_to_eager(name, options):
    tiny = TINY[name]
    model, inputs = tiny.build(), tiny.inputs(batch=2)
    compiled = torch.compile(model, backend="dit_cache", fullgraph=True, options={"inner": "eager", **options})
    for _ in range(3):
        inputs["timestep"] = inputs["timestep"] * 0.9
        torch.testing.assert_close(compiled(**inputs)[0], model(**inputs)[0], atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
@EACH
def test_third_resolution_does_not_recompile_and_is_right(name):
    tiny = TINY[name]
    model = tiny.build()
    compiled = torch.compile(
        model, backend="dit_cache", options={"inner": "eager", "policy": "mask", "step_mask": "110"}
    )
    graphs = []
    for size in RESOLUTIONS[name]:
        inputs = resized(tiny, size)
        for scale in (1.0, 0.9, 0.8):
            inputs["timestep"] = torch.full((1,), tiny.time_scale * scale)
            out = compiled(**inputs)[0]
            if scale > 0.85:
                torch.testing.assert_close(out, model(**inputs)[0], atol=1e-5, rtol=1e-5)
        assert [step.action for step in dit_compile.stats(model)[-1].steps] == ["compute", "compute", "reuse"]
        assert out.isfinite().all()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[1] <= 2


RESOLUTIONS = {"flux": (16, 24, 40), "wan": (8, 12, 16), "sd3": (8, 12, 16), "pixart": (8, 12, 16), "qwen": (4, 6, 8)}


def resized(tiny, size):
    shape = tiny.shapes["hidden_states"]
    if tiny is TINY["flux"]:
        inputs = tiny.inputs(hidden_states=(size, 4))
        inputs["img_ids"] = torch.randn(size, 3)
        return inputs
    if tiny is TINY["qwen"]:
        return {**tiny.inputs(hidden_states=(size * size, 16)), "img_shapes": [(1, size, size)]}
    return tiny.inputs(hidden_states=(*shape[:-2], size, size))


@torch.no_grad()
def test_two_modules_of_one_class_share_code_but_never_state():
    """Wan 2.2 does this: two experts, one compiled graph."""
    tiny = TINY["wan"]
    models = [tiny.build(seed=1), tiny.build(seed=2)]
    options = {"inner": "eager", "policy": "mask", "step_mask": "1010"}
    alone = []
    for model in models:
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="dit_cache", options=options)
        alone.append([compiled(**step)[0] for step in steps(tiny, 4)])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    both = [torch.compile(model, backend="dit_cache", options=options) for model in models]
    for number, inputs in enumerate(steps(tiny, 4)):
        for compiled, expected in zip(both, alone, strict=True):
            torch.testing.assert_close(compiled(**inputs)[0], expected[number])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for model in models:
        assert [step.action for step in dit_compile.stats(model)[-1].steps] == ["compute", "reuse"] * 2


def steps(tiny, count):
    """A trajectory: latents move, all else stays."""
    inputs, other = tiny.inputs(seed=10), tiny.inputs(seed=11)
    for number in range(count):
        time = torch.full((1,), tiny.time_scale * (1 - number / count))
        latents = inputs["hidden_states"] + 0.1 * number * other["hidden_states"]
        yield inputs | dict(hidden_states=latents, timestep=time)


@torch.no_grad()
def test_quantised_weights_survive():
    """torchao int8 weight-only: the weights are tensor subclasses."""
    torchao = pytest.importorskip("torchao.quantization")
    model = TINY["flux"].build()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    quantised = type(model.transformer_blocks[0].attn.to_q.weight)  # its name depends on the version of torchao
    assert quantised is not torch.nn.Parameter
    compiled = torch.compile(
        model, backend="dit_cache", fullgraph=True, options={"inner": "aot_eager", "policy": "mask", "step_mask": "110"}
    )
    for number, inputs in enumerate(steps(TINY["flux"], 3)):
        out = compiled(**inputs)[0]
        if number < 2:
            torch.testing.assert_close(out, model(**inputs)[0], atol=1e-5, rtol=1e-5)
    assert dit_compile.stats(model)[-1].reused == 1
    assert type(model.transformer_blocks[0].attn.to_q.weight) is quantised
