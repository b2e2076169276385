"""NaN and infinity, wherever they come from: such steps are computed, nothing of them is reused, a warning is given."""

import logging
import math

import pytest
import torch
from toys import WIDTH, Toy, build, compile_toy, latents

import dit_compile

STEPS = 10
ALWAYS = {"warmup_steps": 2, "residual_diff_threshold": 0.9, "max_continuous_cached_steps": -1, "forecast": "reuse"}
POLICIES = {
    "dbcache": {},
    "dbcache-blind": {"policy": "dbcache", "residual_diff_threshold": 1.0},
    "dbprune": {"scope": "block"},
    "interval": {"interval": 99, "warmup_steps": 1},  # the first step behind the warm-up is computed, too
    "mask": {"step_mask": "11" + "0" * (STEPS - 2)},
    "teacache": {},
    "teacache-time": {"policy": "teacache", "teacache_tap": "time"},
    "magcache": {"mag_ratios": (1.0,) * (STEPS - 1)},
    "easycache": {},
    "adacache": {"adacache_rates": ((1e9, 99),)},
    "dicache": {"forecast": "dicache"},
    "sencache": {"sencache_sensitivities": ((0.1, 0.1),)},
    "delta_dit": {"scope": "halves", "interval": 99, "warmup_steps": 1, "delta_boundary": 99},
}


class Everything(Toy):
    """A prompt and a control enter behind the first block, and so does a weight."""

    def __init__(self, depth: int = 6, width: int = WIDTH) -> None:
        super().__init__(depth, width)
        self.offset = torch.nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, x, t, prompt, control):  # type: ignore[override]
        h, temb = self.front(x, t)
        h = h + prompt.mean(1, keepdim=True)
        for block in self.blocks[1:]:
            h = block(h, temb) + control + self.offset
        return self.head(h)


class Loop:
    """Latents that move a little. ``poison`` puts ``value`` into ``what`` at the steps that ``when`` names."""

    def __init__(self, model, what="nothing", when=(), value=math.nan):
        self.model = model
        self.start, self.way = latents(seed=1), latents(seed=2)
        self.prompt, self.control = latents(tokens=3, seed=3), 0.1 * latents(seed=4)
        self.what, self.when, self.value = what, when, value
        with dit_compile.session(f"{what} {when} {value}"), torch.no_grad():
            self.finite = [bool(self.step(index).isfinite().all()) for index in range(STEPS)]
        self.steps = dit_compile.stats(self.model)[-1].steps
        self.reasons = [{step.reason for step in self.steps if step.index == index} for index in range(STEPS)]
        # the last region: the first may end before anything spoilt enters
        last = [step for step in self.steps if step.region == max(step.region for step in self.steps)]
        self.reused = [step.action == "reuse" for step in last]

    def step(self, index):
        x, prompt, control = self.start + 0.001 * index * self.way, self.prompt, self.control
        offset = self.model._orig_mod.offset
        offset.zero_()
        if index in self.when:
            spoilt = {"latents": x, "weight": offset, "prompt": prompt, "control": control}[self.what]
            # once: another tensor; always: the very tensor of all steps, as pipelines hand it over
            spoilt = spoilt.clone() if self.what in ("prompt", "control") and len(self.when) == 1 else spoilt
            spoilt.view(-1)[0] = self.value
            prompt = spoilt if self.what == "prompt" else prompt
            control = spoilt if self.what == "control" else control
        return self.model(x, torch.full((2,), 1000.0 - 0.01 * index), prompt, control)


@pytest.fixture
def warned(caplog):
    """How often the user was warned since the last question."""

    def count():
        found = sum("found a probe" in record.getMessage() for record in caplog.records)
        caplog.clear()
        return found

    with caplog.at_level(logging.WARNING, "dit_compile"):
        yield count


@pytest.mark.parametrize("policy", POLICIES)
def test_policy(policy, warned):
    """One compiled model for all that can be spoilt: compiling takes longer than running."""
    options = ALWAYS | {"policy": policy} | POLICIES[policy]
    model = compile_toy(build(Everything), **options)

    loop = Loop(model)
    assert all(loop.finite) and sum(loop.reused) >= STEPS - 5, "else there is nothing to prevent"
    assert not any("non_finite" in reasons for reasons in loop.reasons)
    assert warned() == 0

    # For good, like a model that overflows: nothing is ever reused, and it is said once.
    for what in ("latents", "prompt", "control", "weight"):
        loop = Loop(model, what, range(STEPS))
        assert not any(loop.finite) and not any(loop.reused), what
        assert "non_finite" in loop.reasons[-2] | loop.reasons[-1], (what, loop.reasons)  # some need two to measure
        assert warned() == 1, what

    # In the second step, which the third would reuse: it computes instead, and later ones reuse again.
    for what, value in [("latents", math.nan), ("control", math.nan), ("weight", math.inf), ("weight", -math.inf)]:
        loop = Loop(model, what, [1], value)
        assert loop.finite == [index != 1 for index in range(STEPS)], what
        assert "non_finite" in loop.reasons[1] | loop.reasons[2], (what, loop.reasons)
        assert any(loop.reused[5:]), what
        assert warned() == 1, what

    # In the latents of a step that is reused; policies that look at no data learn of it one step later.
    for value in (math.nan, math.inf):
        loop = Loop(model, "latents", [6], value)
        assert loop.reused[5]
        assert loop.finite == [index != 6 for index in range(STEPS)]
        assert "non_finite" in loop.reasons[6] | loop.reasons[7], loop.reasons
        assert warned() == 1


@pytest.mark.parametrize("rows", ["rows", "halves"])
def test_one_row_of_a_batch_does_not_stop_the_others(rows, warned):
    """The graph has a symbolic batch size; latents and their effect are spoilt in the first row only."""
    model = build(Toy)
    options = {"inner": "eager", "batch_decision": rows, **ALWAYS}
    compiled = torch.compile(model, backend="dit_cache", dynamic=True, options=options)
    start, way = latents(4, seed=1), latents(4, seed=2)
    with torch.no_grad():
        for index in range(STEPS):
            x = start + 0.001 * index * way
            if index >= 4:
                x[0, 0, 0] = math.nan
            out = compiled(x, torch.full((4,), 1000.0 - index))
            assert [bool(row.isfinite().all()) for row in out] == [index < 4, True, True, True]
    steps = [step for step in dit_compile.stats(model)[-1].steps if step.index >= 4]
    assert {step.action for step in steps if step.rows == 0} == {"compute"}
    assert {step.action for step in steps if step.rows > 0} == {"reuse"}
    assert warned() == 1
