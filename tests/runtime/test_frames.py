"""Time, branches and state do not depend on shapes, on types of numbers, or on the graph that serves a call."""

from unittest.mock import patch

import pytest
import torch
from toys import Prompted, build, compile_toy, latents, timestep_embedding

import dit_compile
from dit_compile.runtime import earlier_frame
from dit_compile.runtime.cached_graph import CachedGraph
from dit_compile.runtime.inputs import mean_time

MASK = {"policy": "mask", "step_mask": "11010101", "forecast": "reuse", "warmup_steps": 0}
TIMES = [900.0 - 100 * i for i in range(8)]


def actions(model, branch=0, generation=-1):
    steps = dit_compile.stats(model)[generation].steps
    return "".join(step.action[0] for step in steps if step.branch == branch)


@pytest.fixture
def served(monkeypatch):
    """Numbers of the graphs that served the calls."""
    numbers, call = [], CachedGraph.__call__
    monkeypatch.setattr(
        CachedGraph, "__call__", lambda self, *args: (numbers.append(self.number), call(self, *args))[1]
    )
    return numbers


@torch.no_grad()
@pytest.mark.parametrize("device_times", [False, True], ids=["host", "device"])
def test_a_step_of_calls_of_other_batch(device_times, monkeypatch):
    """Skip layer guidance: two samples, then one of them alone with a part of the model left out."""
    if device_times:
        monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
    plain = build(Prompted, depth=6)
    model = compile_toy(plain, **MASK)
    both = latents(2, 3, seed=8)
    one, x = both[1:].clone(), latents(1, 5, seed=1)
    for time in TIMES:
        t = torch.tensor([time])
        outs = [model(torch.cat([x, x]), t.expand(2), both), model(x, t.clone(), one)]
        x = x - 0.1 * (outs[0][1:] + outs[1])
    assert [len(generation.steps) for generation in dit_compile.stats(model)] == [16]
    assert actions(model, 0) == actions(model, 1) == MASK["step_mask"].replace("1", "c").replace("0", "r")


class Numbered(Prompted):
    """Takes its time as a Python number."""

    def forward(self, x, timestep, prompt):
        return super().forward(x, torch.full((x.shape[0],), 1.0) * timestep, prompt)


@torch.no_grad()
@pytest.mark.parametrize("kind", [int, float])
def test_a_time_that_is_a_python_number(kind):
    """Its first value is a constant of the first graph, which the first call of each generation comes back to."""
    model = compile_toy(plain := build(Numbered, depth=6), **MASK)
    prompt = latents(1, 3, seed=3)
    for seed in (1, 2, 3):
        x = latents(1, 5, seed=seed)
        for time in TIMES:
            wanted, got = plain(x, kind(time), prompt), model(x, kind(time), prompt)
            if dit_compile.stats(model)[-1].steps[-1].action == "compute":
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
            x = x - 0.1 * got
    assert [actions(model, generation=i) for i in range(3)] == ["ccrcrcrc"] * 3


@torch.no_grad()
def test_the_first_picture_is_like_the_later_ones(served):
    """Prompts of two lengths: the second call compiles a graph that from then on serves both."""
    model = compile_toy(build(Prompted, depth=6), **MASK)
    prompts, outs = [latents(1, 3, seed=3), latents(1, 4, seed=4)], []
    for _ in range(2):
        x = latents(1, 5, seed=1)
        for time in TIMES:
            cond, uncond = (model(x, torch.tensor([time]), prompt) for prompt in prompts)
            x = x - 0.1 * (uncond + 2 * (cond - uncond))
        outs.append(x)
    assert len(set(served)) == 2 and served[0] != served[2]
    assert torch.equal(*outs)
    assert actions(model, generation=0) == actions(model, generation=1) == "ccrcrcrc"


class Skipping(Prompted):
    """Leaves out blocks on demand, as skip layer guidance and perturbed guidance do."""

    def forward(self, x, t, prompt, skip=()):
        h, temb = self.front(x, t)
        h = h + prompt.mean(1, keepdim=True)
        for i, block in enumerate(self.blocks[1:]):
            if i not in skip:
                h = block(h, temb)
        return self.tail(h, temb)


@torch.no_grad()
def test_one_prompt_through_two_models_at_one_time():
    """Graphs that compute something else are branches of their own and share nothing."""
    plain = build(Skipping, depth=7)
    model = compile_toy(plain, **{**MASK, "step_mask": "1" * 8})
    prompt, x = latents(1, 3, seed=3), latents(1, 5, seed=1)
    for time in TIMES:
        t = torch.tensor([time])
        outs = [model(x, t, prompt), model(x, t, prompt, skip=(2,))]
        torch.testing.assert_close(outs, [plain(x, t, prompt), plain(x, t, prompt, skip=(2,))])
        x = x - 0.1 * outs[0]
    [generation] = dit_compile.stats(plain)
    assert [(step.index, step.branch) for step in generation.steps] == [(i, b) for i in range(8) for b in (0, 1)]
    assert [step.reason for step in generation.steps[2:]] == ["mask"] * 14, "each branch keeps its snapshots"


class Broken(Prompted):
    """Torch breaks it before the blocks, which then see neither the time nor the prompt."""

    def forward(self, x, t, prompt):
        h, temb = self.embed(x), timestep_embedding(t)
        h = h + prompt.mean(1, keepdim=True)
        torch._dynamo.graph_break()
        for block in self.blocks:
            h = block(h, temb)
        return self.tail(h, temb)


@torch.no_grad()
def test_a_model_that_is_broken_before_its_blocks():
    plain = build(Broken, depth=6)
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager", **MASK})
    prompts = [latents(1, 3, seed=3), latents(1, 3, seed=4)]
    for seed in (1, 2):
        x = latents(1, 5, seed=seed)
        for time in TIMES:
            outs = [model(x, torch.tensor([time]), prompt) for prompt in prompts]
            if MASK["step_mask"][TIMES.index(time)] == "1":
                torch.testing.assert_close(outs, [plain(x, torch.tensor([time]), prompt) for prompt in prompts])
            x = x - 0.1 * (outs[1] + 2 * (outs[0] - outs[1]))
    for generation in (0, 1):
        assert actions(model, 0, generation) == actions(model, 1, generation) == "ccrcrcrc"


@torch.no_grad()
def test_blocks_without_the_part_that_knows_the_time(caplog):
    """That part was not compiled: prompts and generations cannot be told apart. Nothing is reused, and it is said."""
    plain = build(Broken, depth=6)
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager", **MASK})
    x, prompt = latents(1, 5, seed=1), latents(1, 3, seed=3)
    model(x, torch.tensor([900.0]), prompt)
    with patch.object(earlier_frame.Places, "inputs", lambda *args: None):
        for time in TIMES:
            t = torch.tensor([time])
            torch.testing.assert_close(model(x, t, prompt), plain(x, t, prompt))
            x = x - 0.1
    assert "the part before the break" in caplog.text


def test_times_of_frames():
    """The mean falls where frames run ahead of each other, and is exact where all times are equal."""
    rows = [[999.0, 999.0, 999.0], [700.0, 999.0, 999.0], [400.0, 700.0, 999.0], [0.0, 400.0, 700.0]]
    means = [float(mean_time(torch.tensor(row))) for row in rows]
    assert means == sorted(means, reverse=True) and len(set(means)) == len(means)
    assert float(mean_time(torch.full((7,), 0.1))) == float(torch.tensor([0.1]))
