"""What users get wrong, and models that cannot be cached: a clear message, and the right output."""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from toys import Block, NoBlocks, Prompted, Toy, build, compile_toy, latents, moved

import dit_compile
from dit_compile.api import process_overrides
from dit_compile.config import ConfigError

T = torch.full((2,), 900.0)


@pytest.fixture(autouse=True)
def no_settings_left():
    yield
    dit_compile.configure(**dict.fromkeys(process_overrides()))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@torch.no_grad()
def generate(model, steps=4):
    return [model(moved(i), torch.full((2,), 900.0 - 100 * i)) for i in range(steps)]


def right(got, model, steps=4):
    torch.testing.assert_close(got, generate(model, steps))


# --- settings


def fails_to_compile(match, **options):
    model = compile_toy(build(Toy), **options)
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match=match) as caught:
        model(latents(), T)
    assert "ConfigError" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("DIT_CACHE_TRESHOLD", "0.1", "DIT_CACHE_TRESHOLD is not a setting.*DIT_CACHE_RESIDUAL_DIFF_THRESHOLD"),
        ("DIT_CACHE_WARMUP", "4", "did you mean DIT_CACHE_WARMUP_STEPS"),
        ("DIT_CACHE_WARMUP_STEPS", "four", "DIT_CACHE_WARMUP_STEPS: got 'four', expected an integer >= 0"),
        ("DIT_CACHE_PRESET", "balance", "DIT_CACHE_PRESET: got 'balance'.*did you mean 'balanced'"),
        (
            "DIT_CACHE_POLICY",
            "dbcash",
            "DIT_CACHE_POLICY: got 'dbcash', expected adacache, dbcache, dbprune, delta_dit",
        ),
        ("DIT_CACHE_POLICY", "mask", 'policy="mask" needs step_mask'),
    ],
)
def test_environment(variable, value, match, monkeypatch):
    monkeypatch.setenv(variable, value)
    fails_to_compile(match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"residual_diff_treshold": 0.1}, "option 'residual_diff_treshold'.*did you mean 'residual_diff_threshold'"),
        ({"Fn_compute_blocks": 8}, "option 'Fn_compute_blocks'.*did you mean 'fn'"),
        ({"residual_diff_threshold": -1}, "option 'residual_diff_threshold': got -1"),
        ({"taylor_order": 9}, "expected an integer from 0 to 5"),
        ({"forecast": "taylor"}, "option 'forecast': got 'taylor'.*did you mean 'taylorseer'"),
        ({"step_mask": "12"}, "option 'step_mask': got '12'"),
    ],
    ids=str,
)
def test_options(options, match):
    fails_to_compile(match, **options)


def test_structure_cannot_be_configured_at_run_time():
    for name, value in {"fn": 2, "bn": 1, "scope": "container", "inner": "eager", "dump": "/tmp"}.items():
        with pytest.raises(ConfigError, match=f"{name!r} is structure.*torch.compile"):
            dit_compile.configure(**{name: value})


def test_configure_takes_all_or_nothing():
    with pytest.raises(ConfigError, match="did you mean 'warmup_steps'"):
        dit_compile.configure(residual_diff_threshold=0.5, warmup_step=3)
    assert dict(process_overrides()) == {}
    with pytest.raises(ConfigError, match="is not a setting"):
        dit_compile.configure(nonsense=None)


@torch.no_grad()
def test_enabled_0_is_the_plain_compiler(monkeypatch, caplog):
    monkeypatch.setenv("DIT_CACHE_ENABLED", "0")
    model = compile_toy(build(Toy), residual_diff_threshold=1, warmup_steps=0)
    right(generate(model), model._orig_mod)
    assert dit_compile.stats(model) == []
    assert torch._dynamo.utils.counters["dit_cache"]["graphs"] == 0
    assert warnings(caplog) == []


@torch.no_grad()
def test_a_cache_switched_off_while_it_runs_computes_every_step():
    model = compile_toy(build(Toy), residual_diff_threshold=1, warmup_steps=1)
    generate(model)
    assert dit_compile.stats(model)[-1].reused > 0
    dit_compile.configure(enabled=False)
    dit_compile.reset()
    right(generate(model), model._orig_mod)
    dit_compile.configure(enabled=None)
    dit_compile.reset()
    generate(model)
    assert [stats.reused > 0 for stats in dit_compile.stats(model)] == [True, False, True]


# --- models


@pytest.mark.parametrize(("front", "back"), [(99, 0), (1, 99), (4, 4), (6, 0), (5, 1)])
def test_more_front_and_back_blocks_than_blocks(front, back, caplog):
    model = compile_toy(build(Toy), fn=front, bn=back, residual_diff_threshold=0)
    right(generate(model), model._orig_mod)
    assert len(warnings(caplog)) == 1
    assert dit_compile.stats(model)[-1].computed == 4


def test_a_clamped_region_is_reused(caplog):
    model = compile_toy(build(Toy), fn=4, bn=4, residual_diff_threshold=1, warmup_steps=0)
    generate(model)
    assert dit_compile.stats(model)[-1].reused == 2  # C2
    assert len(warnings(caplog)) == 1


def test_a_model_without_blocks(caplog):
    model = compile_toy(build(NoBlocks))
    right(generate(model), model._orig_mod)
    [warning] = warnings(caplog)
    assert "this graph is not cached" in warning
    assert dit_compile.stats(model) == []


def test_gradients(caplog):
    model = build(Toy)
    compiled = compile_toy(model)
    x = latents().requires_grad_()
    compiled(x, T).square().sum().backward()
    [warning] = warnings(caplog)
    assert "no_grad" in warning
    got = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    model(x, T).square().sum().backward()
    torch.testing.assert_close(got, [x.grad, *(p.grad for p in model.parameters())])
    assert dit_compile.stats(model) == []


def test_a_frozen_model_is_cached_without_no_grad():
    """requires_grad_(False) is enough: there is nothing to differentiate."""
    model = build(Toy).requires_grad_(False)
    compiled = compile_toy(model, residual_diff_threshold=1, warmup_steps=1)
    for i in range(3):
        compiled(moved(i), torch.full((2,), 900.0 - 100 * i))
    assert dit_compile.stats(model)[-1].reused == 2


class DropoutBlock(Block):
    def forward(self, x, temb):
        return nn.functional.dropout(super().forward(x, temb), 0.5, self.training)


class Dropout(Toy):
    def make_block(self, index, width):
        return DropoutBlock(width)


def test_dropout_in_training_mode_is_refused(caplog):
    model = build(Dropout).train()
    compiled = torch.compile(model, backend="dit_cache", options={"inner": "eager"})
    with torch.no_grad():
        torch.manual_seed(3)
        got = compiled(latents(), T)
        torch.manual_seed(3)
        torch.testing.assert_close(got, model(latents(), T))
    [warning] = warnings(caplog)
    assert "random numbers" in warning
    assert "model.eval()" in warning
    assert dit_compile.stats(model) == []


def test_dropout_in_evaluation_mode_is_cached(caplog):
    model = compile_toy(build(Dropout), residual_diff_threshold=1, warmup_steps=1)
    generate(model)
    assert dit_compile.stats(model)[-1].reused == 2
    assert warnings(caplog) == []


@torch.no_grad()
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(bad, caplog):
    """The step is computed; so is the next, which has nothing sound to compare with; then all is as before."""
    model = compile_toy(build(Toy), warmup_steps=0, residual_diff_threshold=0.999, max_continuous_cached_steps=-1)
    xs = [latents(seed=1) + 0.01 * i for i in range(5)]
    xs[2] = torch.full_like(xs[2], bad)
    ts = [torch.full((2,), 900.0 - i) for i in range(5)]
    outs = [model(x, t) for x, t in zip(xs, ts, strict=True)]
    steps = dit_compile.stats(model)[-1].steps
    assert [s.reason for s in steps] == ["no_snapshot", "hit", "non_finite", "non_finite", "hit"]
    assert [s.action == "reuse" for s in steps] == [False, True, False, False, True]
    assert outs[2].isnan().all()
    torch.testing.assert_close(outs[3], model._orig_mod(xs[3], ts[3]))
    assert outs[4].isfinite().all()
    assert len([w for w in warnings(caplog) if "NaN" in w]) == 1


# --- in-place writes


class Accumulating(Block):
    """Writes into the stream that the block before has made."""

    def forward(self, x, temb):
        x += super().forward(x, temb) * 0.1
        return x


class Careful(Block):
    """Writes into tensors of its own."""

    def forward(self, x, temb):
        y = self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        y += self.shift(temb)[:, None]
        y.mul_(0.5)
        return x + y


class Counting(Block):
    """Counts its calls in a buffer."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, temb):
        self.calls.add_(1.0)
        return super().forward(x, temb) + 0.01 * self.calls


def of(kind):
    class Model(Toy):
        def make_block(self, index, width):
            return kind(width)

    return Model


ALWAYS = {"residual_diff_threshold": 1, "warmup_steps": 0, "max_continuous_cached_steps": -1}


class Hoarding(Toy):
    """Reads the first stream again behind blocks that have written into it."""

    def make_block(self, index, width):
        return Accumulating(width)

    def forward(self, x, t):
        h, temb = self.front(x, t)
        first = h[:, :1]
        return self.tail(self.region(h, temb), temb) + first


@pytest.mark.parametrize(("make", "writes"), [(Hoarding, "first"), (of(Counting), "calls")])
def test_writes_that_others_see_are_refused(make, writes, caplog):
    model = build(make)
    compiled = compile_toy(model, **ALWAYS)
    got = generate(compiled)
    right(got, build(make))
    [warning] = warnings(caplog)
    assert "this graph is not cached" in warning
    assert "writes into" in warning
    assert dit_compile.stats(model) == []
    if writes == "calls":
        assert [float(block.calls) for block in model.blocks] == [4.0] * 6


def test_writes_into_a_stream_that_nobody_else_reads(caplog):
    """``x += f(x)`` at the end of every block: an edge of the graph like any other."""
    model = compile_toy(build(of(Accumulating)), residual_diff_threshold=0, warmup_steps=0)
    right(generate(model), build(of(Accumulating)))
    assert dit_compile.stats(model)[-1].computed == 4
    model = compile_toy(build(of(Accumulating)), **ALWAYS)
    got = generate(model)
    torch.testing.assert_close(got[0], generate(build(of(Accumulating)))[0])
    assert dit_compile.stats(model)[-1].reused == 3
    assert [w for w in warnings(caplog) if "not cached" in w] == []


def test_writes_within_a_block_are_accepted(caplog):
    model = compile_toy(build(of(Careful)), **ALWAYS)
    got = generate(model)
    torch.testing.assert_close(got[0], generate(model._orig_mod)[0])
    assert dit_compile.stats(model)[-1].reused == 3
    assert warnings(caplog) == []


def test_writes_within_a_block_are_right_when_computed():
    model = compile_toy(build(of(Careful)), residual_diff_threshold=0)
    right(generate(model), model._orig_mod)


@torch.no_grad()
def test_an_input_that_the_model_writes_into(caplog):
    """Outside the region that is nobody's business but the model's; it happens at every step."""

    class Writing(Toy):
        def forward(self, x, t):
            out = super().forward(x, t)
            x.add_(1.0)
            return out

    model = compile_toy(build(Writing), **ALWAYS)
    x = latents()
    for i in range(3):
        model(x, torch.full((2,), 900.0 - i))
    torch.testing.assert_close(x, latents() + 3.0)


def test_the_same_refusal_is_said_once(caplog):
    """Two resolutions are two graphs."""
    model = compile_toy(build(NoBlocks))
    with torch.no_grad():
        for tokens in (5, 7, 9):
            model(latents(tokens=tokens), T)
    assert len(warnings(caplog)) == 1


@torch.no_grad()
def test_weights_that_move_or_change_between_steps():
    """A LoRA loaded, weights swapped: the next computed step uses them."""
    model = build(Prompted)
    compiled = compile_toy(model, residual_diff_threshold=0)
    prompt = latents(tokens=3, seed=9)
    compiled(latents(), T, prompt)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    torch.testing.assert_close(compiled(latents(), T, prompt), model(latents(), T, prompt))
    model.head.weight = nn.Parameter(model.head.weight * 2)
    torch.testing.assert_close(compiled(latents(), T, prompt), model(latents(), T, prompt))
