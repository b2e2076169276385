"""What Dynamo, its tools and its users may do with a backend."""

import copy
import functools

import pytest
import torch
from toys import Toy, build, compile_toy, latents, moved

import dit_compile
from dit_compile.backend import dit_cache

T = [torch.full((2,), 900.0 - 100 * i) for i in range(6)]


@torch.no_grad()
def test_a_deep_copied_graph_compiles_again_and_again():
    """The minifier copies the graph, which loses what Dynamo notes as attributes, and calls the backend many times."""
    model, results = build(Toy), []

    def minifier(gm, example_inputs):
        for _ in range(2):
            code = dit_cache(copy.deepcopy(gm), example_inputs, options={"inner": "aot_eager"})
            results.append(code(*example_inputs)[0])
        return gm.forward

    expected = torch.compile(model, backend=minifier)(latents(), T[0])
    assert len(results) == 2
    for result in results:
        torch.testing.assert_close(result, expected)


@torch.no_grad()
def test_compiling_runs_nothing(monkeypatch):
    """Dynamo hands over real tensors; a backend that computed on them would pay for a step that nobody asked for. What
    pieces do is found on fake tensors."""
    ran = []
    model = build(Toy)
    real = torch.nn.functional.gelu

    def backend(gm, example_inputs):
        with torch.utils._python_dispatch._disable_current_modes():
            for node in gm.graph.nodes:
                if node.target is real:
                    node.target = lambda x: (ran.append(1) if type(x) is torch.Tensor else None) or real(x)
        code = dit_cache(gm, example_inputs, options={"inner": "eager"})
        assert ran == []
        return code

    torch.compile(model, backend=backend)(latents(), T[0])
    assert len(ran) == 6


@torch.no_grad()
def test_a_name_for_the_compiled_region():
    """torch 2.15 passes its argument ``name`` to backends."""
    model = build(Toy)
    compiled = torch.compile(model, backend=functools.partial(dit_cache, name="unet", options={"inner": "eager"}))
    torch.testing.assert_close(compiled(latents(), T[0]), model(latents(), T[0]))
    assert dit_compile.graphs()[-1].refusal is None


@torch.no_grad()
def test_compiler_reset_drops_state_but_not_statistics():
    model = build(Toy)
    compiled = compile_toy(model, policy="mask", step_mask="1000")
    compiled(latents(), T[0])
    compiled(moved(1), T[1])
    torch.compiler.reset()
    compiled = compile_toy(model, policy="mask", step_mask="1000")
    torch.testing.assert_close(compiled(latents(seed=2), T[2]), model(latents(seed=2), T[2]))
    assert [g.reused for g in dit_compile.stats(model)] == [1, 0]


def test_state_does_not_cross_grad_modes():
    """Inference tensors cannot be written outside inference mode: a change of mode frees the snapshots."""
    model = build(Toy)
    compiled = compile_toy(model, policy="mask", step_mask="10000", forecast="reuse")
    outputs = []
    normal, inference = torch.no_grad, torch.inference_mode
    for step, mode in enumerate([normal, normal, inference, inference, normal]):
        with mode():
            outputs.append(compiled(moved(step), T[step]))
    steps = dit_compile.stats(model)[-1].steps
    computed, reused = ("compute", "no_snapshot"), ("reuse", "hit")
    changed = ("compute", "shape_changed")
    assert [(s.action, s.reason) for s in steps] == [computed, reused, changed, reused, changed]
    assert [output.is_inference() for output in outputs] == [False, False, True, True, False]


@torch.no_grad()
def test_autocast_regions_compile_apart():
    model, x = build(Toy), latents()
    compiled = compile_toy(model, residual_diff_threshold=0.0)
    plain = compiled(x, T[0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, T[1]), model(x, T[1]))
    assert plain.dtype == torch.float32
    torch.testing.assert_close(compiled(x, T[2]), model(x, T[2]))


@torch.no_grad()
def test_weights_may_move_between_steps():
    """Swapping a parameter's data recompiles nothing; state must not hang on an address."""
    model = build(Toy)
    compiled = compile_toy(model, policy="mask", step_mask="110")
    for step in range(2):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone() * 1.01
        torch.testing.assert_close(compiled(moved(step), T[step]), model(moved(step), T[step]))
    compiled(moved(2), T[2])
    assert [s.action for s in dit_compile.stats(model)[-1].steps] == ["compute", "compute", "reuse"]


@torch.no_grad()
def test_a_dead_model_leaves_nothing_behind():
    import gc

    from dit_compile.api import table

    model = build(Toy)
    compile_toy(model)(latents(), T[0])
    before = len(dit_compile.stats())
    assert dit_compile.stats(model)
    torch._dynamo.reset()
    del model
    gc.collect()
    assert len(dit_compile.stats()) < before
    assert not [key for key in table._states if key[0] not in table._owners.values()]


@torch.no_grad()
@pytest.mark.parametrize(
    "given", [{"mode": "reduce-overhead"}, {"options": {"mode": "max-autotune", "fn": 1}}], ids=str
)
def test_pieces_are_compiled_without_cuda_graphs(given, monkeypatch):
    """Segments are recorded as a whole (runtime/cuda_graphs.py), not each piece by Inductor."""
    from dit_compile.passes import lower

    seen = []
    monkeypatch.setattr(lower, "compile_graph", lambda gm, inner, patches: seen.append(patches) or gm.forward)
    torch.compile(build(Toy), backend="dit_cache", **given)(latents(), T[0])
    mode = given.get("mode") or given["options"]["mode"]
    assert seen
    for patches in seen:
        assert {**torch._inductor.list_mode_options(mode), **patches} == patches | {"triton.cudagraphs": False}
