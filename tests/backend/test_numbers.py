"""Python numbers that change between calls are operands of the pieces, where an operator takes a tensor instead."""

import pytest
import torch
from torch.nn import functional as F
from toys import Block, Toy, build, compile_toy, latents

import dit_compile

T = torch.full((2,), 500.0)


class Weighted(Block):
    """A block with a number that it holds, as an adapter's weight is held."""

    def __init__(self, width, use):
        super().__init__(width)
        self.weight, self.use = 0.5, use

    def forward(self, x, temb):
        return super().forward(x, temb) + self.use(torch.tanh(x), self.weight)


def model_with(use):
    class Model(Toy):
        def make_block(self, index, width):
            return Weighted(width, use)

        def forward(self, x, t, scale=1.0):
            return super().forward(x, t) * scale

    return build(Model, depth=4)


OPERANDS = {
    "operator": lambda y, w: y * w,
    "number first": lambda y, w: w - y,
    "function": lambda y, w: torch.mul(y, w),
    "method": lambda y, w: y.div(w),
    "in place": lambda y, w: y.clone().mul_(w),
    "arithmetic": lambda y, w: y * (w * 0.5 + 2.0) / w,
    "alpha": lambda y, w: torch.add(y, w, alpha=2),
    "half precision": lambda y, w: (y.half() * w).float(),
}
CONSTANTS = {
    "eps": lambda y, w: F.layer_norm(y, y.shape[-1:], eps=w),
    "attention": lambda y, w: F.scaled_dot_product_attention(y, y, y, scale=w),
    "integers": lambda y, w: (torch.ones_like(y, dtype=torch.long) * w).to(y.dtype) * y,
    "clamp": lambda y, w: y.clamp(max=w),
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("use", "inner"),
    [
        pytest.param(use, inner, id=f"{name}-{inner}", marks=pytest.mark.slow if slow else ())
        for inner in ("eager", "aot_eager")
        for name, use in OPERANDS.items()
        for slow in (inner == "aot_eager" and name not in ("operator", "arithmetic"),)
    ],
)
def test_two_graphs_serve_all_values(use, inner):
    model = model_with(use)
    compiled = compile_toy(model, residual_diff_threshold=0, inner=inner)
    for weight in (0.5, 0.25, 0.8, 0.9, 0.7):
        for block in model.blocks:
            block.weight = weight
        torch.testing.assert_close(compiled(latents(), T), model(latents(), T), rtol=1e-5, atol=1e-6)
    assert len(dit_compile.graphs()) == 2
    assert all(report.refusal is None and not report.fixed_numbers for report in dit_compile.graphs())


@torch.no_grad()
@pytest.mark.parametrize("use", CONSTANTS.values(), ids=CONSTANTS)
def test_an_operator_that_insists_gets_a_constant(use):
    """Right at every value, one graph for each, and counted."""
    model = model_with(use)
    compiled = compile_toy(model, residual_diff_threshold=0)
    for weight in (0.5, 0.25, 0.8):
        for block in model.blocks:
            block.weight = weight
        torch.testing.assert_close(compiled(latents(), T), model(latents(), T), rtol=1e-5, atol=1e-6)
    reports = dit_compile.graphs()
    assert all(report.refusal is None for report in reports)
    assert reports[-1].fixed_numbers
    assert torch._dynamo.utils.counters["dit_cache"]["fixed_numbers"] > 0


@torch.no_grad()
def test_a_number_as_argument(caplog):
    """Two graphs for all values; every generation is cached; a value that changes amid a generation is computed."""
    model = model_with(lambda y, w: y * w)
    compiled = compile_toy(model, policy="mask", step_mask="1000", forecast="reuse")
    for scale in (0.8, 0.5, 0.8, 1.0, 0.3):
        dit_compile.reset()
        outs = [compiled(latents(seed=1), T - 10 * i, scale) for i in range(4)]
        torch.testing.assert_close(outs[0], model(latents(seed=1), T, scale))
        assert [step.reason for step in dit_compile.stats(compiled)[-1].steps] == ["no_snapshot", "hit", "hit", "hit"]
    assert len(dit_compile.graphs()) == 2
    dit_compile.reset()
    outs = [compiled(latents(seed=1), T - 10 * i, scale) for i, scale in enumerate((0.8, 0.8, 0.4, 0.4))]
    reasons = [step.reason for step in dit_compile.stats(compiled)[-1].steps]
    assert reasons == ["no_snapshot", "hit", "input_changed", "hit"]
    torch.testing.assert_close(outs[2], model(latents(seed=1), T - 20, 0.4))
    assert not [record for record in caplog.records if "constants of the compiled graph" in record.getMessage()]


@torch.no_grad()
def test_an_argument_that_becomes_a_constant_is_said(caplog):
    class Clamped(Toy):
        def forward(self, x, t, limit=1.0):
            return super().forward(x, t).clamp(max=limit)

    model = build(Clamped)
    compiled = compile_toy(model, residual_diff_threshold=0)
    for limit in (0.3, 0.2, 0.1):
        torch.testing.assert_close(compiled(latents(), T, limit), model(latents(), T, limit))
    assert len([r for r in caplog.records if "l_limit_ (clamp)" in r.getMessage()]) == 1
    assert len(dit_compile.graphs()) == 3


@torch.no_grad()
def test_the_time_may_be_a_number():
    """A float called t is the clock: a generation ends where it jumps back."""

    class Timed(Toy):
        def forward(self, x, t):
            return super().forward(x, torch.ones(2) * t)

    compiled = compile_toy(build(Timed), policy="mask", step_mask="1010", forecast="reuse")
    compiled(latents(seed=1), 77.0)
    dit_compile.reset()
    for _ in range(2):
        for value in (900.0, 700.0, 500.0, 300.0):
            compiled(latents(seed=1), value)
    steps = [[step.action for step in stats.steps] for stats in dit_compile.stats(compiled)[-2:]]
    assert steps == [["compute", "reuse", "compute", "reuse"]] * 2
