"""Branches that miss steps: guidance in an interval, guidance that ends early, a graph that is not called any more.

What missed a step holds no memory, and its next step is computed; the others go on as if they were alone.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Glue, Prompted, build, compile_toy, latents

import dit_compile
from dit_compile.runtime.clock import Clock
from dit_compile.runtime.inputs import Call

ALWAYS = {"warmup_steps": 2, "residual_diff_threshold": 1.0, "max_continuous_cached_steps": -1}
POLICIES = pytest.mark.parametrize("policy", ["dbcache", "interval", "dbprune"])


@pytest.fixture
def on_device(request, monkeypatch):
    """Timesteps as they are on a GPU: their values are known one call later."""
    if request.param:
        monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)


PLACES = pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"], indirect=True)


class Loop:
    """A generation whose steps call the branches that ``attendance`` names; keeps every output, and the bytes held."""

    def __init__(self, attendance, **options):
        self.model = compile_toy(build(Prompted, depth=4), **(ALWAYS | options))
        self.prompts = [latents(tokens=3, seed=100 + branch) for branch in range(1 + max(map(max, attendance)))]
        self.outs, self.held = {}, []
        with torch.no_grad():
            for step, branches in enumerate(attendance):
                x, t = self.inputs(step)
                for branch in branches:
                    self.outs[step, branch] = self.model(x, t, self.prompts[branch])
                self.held.append(dit_compile.stats(self.model)[-1].bytes_held)
        (self.stats,) = dit_compile.stats(self.model)
        self.reasons = {(step.index, step.branch): step.reason for step in self.stats.steps}

    def inputs(self, step):
        return latents(seed=1) + 0.02 * step * latents(seed=2), torch.full((2,), 1000.0 - 10 * step)

    @torch.no_grad()
    def plain(self, step, branch):
        return self.model._orig_mod(*self.inputs(step), self.prompts[branch])

    @torch.no_grad()
    def reused(self, step, since, branch):
        """Step ``step`` with the change that the region made at step ``since``."""
        toy, prompt = self.model._orig_mod, self.prompts[branch].mean(1, keepdim=True)
        then, temb_then = toy.front(*self.inputs(since))
        now, temb = toy.front(*self.inputs(step))
        change = toy.region(then + prompt, temb_then) - then
        return toy.tail(now + change, temb)


BOTH, ONE = (0, 1), (0,)


@PLACES
@pytest.mark.parametrize("away", [1, 3])
def test_guidance_interval(on_device, away):
    """The branch returns after ``away`` steps: it is computed, and forecast from what it is now."""
    loop = Loop([BOTH] * 4 + [ONE] * away + [BOTH] * 3)
    back = 4 + away
    assert loop.reasons[3, 1] == "hit"
    assert loop.reasons[back, 1] == "absent"
    torch.testing.assert_close(loop.outs[back, 1], loop.plain(back, 1))
    assert loop.reasons[back + 1, 1] == loop.reasons[back + 2, 1] == "hit"
    for step in (back + 1, back + 2):  # one snapshot: a straight line over the gap would give something else
        torch.testing.assert_close(loop.outs[step, 1], loop.reused(step, back, 1))
    assert all(loop.reasons[step, 0] == "hit" for step in range(2, back + 3)), "the other branch has missed nothing"


@PLACES
@POLICIES
@pytest.mark.parametrize("stays", [0, 1])
def test_cfg_truncation(on_device, policy, stays):
    """The other branch leaves for good: one step later its memory is free, and the one that stays is as if alone."""
    options = {"policy": policy, "interval": 3, **({"scope": "block"} if policy == "dbprune" else {})}
    loop = Loop([BOTH] * 4 + [(stays,)] * 4, **options)
    both, last = loop.held[3], loop.held[4]
    assert both == last > 0, "step 4 may still have had a call of the other branch to come"
    assert loop.held[5:] == [both // 2] * 3
    alone = Loop([(stays,)] * 8, **options)
    assert all(torch.equal(loop.outs[step, stays], alone.outs[step, stays]) for step in range(8))
    assert alone.held[5:] == loop.held[5:]
    assert "absent" not in loop.reasons.values()
    assert loop.stats.reused > alone.stats.reused > 0


@torch.no_grad()
def test_a_graph_that_is_not_called_any_more():
    """A control that is left out from a step on needs another graph, which does something else: it shares no snapshots
    with the first one, and the first one's are freed at once."""
    model = compile_toy(build(Glue, depth=6), **ALWAYS)
    control = latents(6, seed=5).unsqueeze(1)
    held, outs = [], []
    with_control = [True] * 4 + [False] * 4 + [True]
    calls = [(latents(seed=1) + 0.001 * i, torch.full((2,), 900.0 - i), control) for i in range(len(with_control))]
    for call, controlled in zip(calls, with_control, strict=True):
        outs.append(model(*call) if controlled else model(*call[:2]))
        held.append(dit_compile.stats(model)[-1].bytes_held)
    reasons = [step.reason for step in dit_compile.stats(model)[-1].steps]
    assert reasons == ["no_snapshot", "warmup", "hit", "hit", "no_snapshot", "hit", "hit", "hit", "no_snapshot"]
    assert held[4] == held[0]
    torch.testing.assert_close(outs[-1], model._orig_mod(*calls[-1]))


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=8))
def test_who_has_left(attendance):
    """At the beginning of each step: the branches of the step before last that the last one did without."""
    clock, prompts, kept = Clock(), [torch.zeros(1) for _ in range(4)], []
    called, left = [set(), set()], []
    for step, calls in enumerate(attendance):
        kept.append((x := torch.zeros(2, 3), t := torch.full((2,), 1000.0 - step)))
        positions = [
            clock.tick(Call(0, [x], t, [prompts[who]], 1000.0 - step), cfg="auto", num_steps=None)
            for who in sorted(calls)
        ]
        assert {position.step for position in positions} == {step}
        assert all(position.left == () for position in positions[1:])
        left.append(set(positions[0].left))
        called.append({(0, position.branch) for position in positions})
    assert left == [before - last for before, last in itertools.pairwise(called[:-1])]
