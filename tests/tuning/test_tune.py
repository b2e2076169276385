"""From a budget to a plan, on a toy: the plan keeps its budget and beats what it is compared with."""

import math

import pytest
import torch
from guided_toy import Model, Pipeline
from toys import Block, build, latents

import dit_compile
from dit_compile import TuneError
from dit_compile.config import CacheConfig
from dit_compile.runtime.region import RegionCall
from dit_compile.runtime.stats import GenerationStats, StepStats
from dit_compile.tuning.api import split
from dit_compile.tuning.contest import Result, at_equal_cost, cost_of, verdict
from dit_compile.tuning.drawing import Prompt
from dit_compile.tuning.pictures import data_range, pixels_of, psnr

PROMPTS = ["a cat", "two dogs", "a tree", "a red house", "nothing much", "a ship"]
SETTINGS = {"inner": "eager", "regions": False}


def tuned(pipe=None, prompts=PROMPTS, **kwargs):
    pipe = Pipeline() if pipe is None else pipe
    return dit_compile.tune(pipe, prompts, model=pipe.model, inner="eager", **kwargs)


def errors(plan, pipe, prompts, **changes):
    """Of pictures under ``plan`` to uncached ones, relative, by a pipeline of its own."""
    other = Pipeline(model=build(Model), **changes)
    dit_compile.compile(other.model, plan=plan, **SETTINGS)
    found = []
    for prompt, seed in prompts:
        truth = pipe(prompt, seed)
        found.append((torch.dist(other(prompt, seed), truth) / truth.norm()).item())
        assert "in force" in dit_compile.stats(other.model)[-1].plan
    return found


@pytest.mark.parametrize("settings", [{}, {"guidance": 1.0}, {"batched": True}, {"shift": 3.0}])
def test_a_plan_beats_reuse_on_prompts_that_it_has_not_seen(settings):
    pipe = Pipeline(**settings)
    plan = tuned(pipe, cost=0.6)
    assert plan.cost <= 0.6 * 10 and plan.made["in_sequence"] == [True]
    other = [("something else", 51), ("and again", 52), ("a last one", 53)]
    mine = errors(plan, Pipeline(**settings), other, **settings)
    reused = next(one for one in plan.figures["others"] if "reuse" in one["name"])
    assert plan.figures["plan"]["psnr"] > reused["psnr"]
    assert max(mine) < 0.05
    assert pipe.model._compiled_call_impl is None, "the model is as it was"
    assert {type(block) for block in pipe.model.blocks} == {Block}


def test_a_model_that_was_compiled_keeps_its_code_and_its_settings():
    pipe = Pipeline()
    dit_compile.compile(pipe.model, preset="fast", **SETTINGS)
    before = pipe.model._compiled_call_impl
    tuned(pipe, cost=0.6)
    assert pipe.model._compiled_call_impl is before
    assert before.options["preset"] == "fast"


def test_psnr_as_the_budget():
    pipe = Pipeline()
    low, high = tuned(pipe, psnr=28.0), tuned(pipe, psnr=43.0)
    assert low.cost < high.cost
    assert low.figures["plan"]["psnr"] > 24 and high.figures["plan"]["psnr"] > 39
    with pytest.raises(TuneError, match="reaches 500 dB"):
        tuned(pipe, psnr=500.0)


def test_a_metric_of_the_users_own_as_the_budget():
    asked = []

    def metric(reference, picture):
        asked.append((reference.shape, picture.shape))
        return -torch.dist(reference, picture).item()

    loose, strict = tuned(quality=-1.0, metric=metric), tuned(quality=-0.2, metric=metric)
    assert loose.cost < strict.cost < 10 and set(asked) == {((1, 5, 16), (1, 5, 16))}
    with pytest.raises(TuneError, match="belong together"):
        tuned(quality=-1.0)


def test_seconds_as_the_budget(monkeypatch):
    """By a clock that only regions move: a computed step takes two seconds, one for each branch, a forecast none."""
    now = [0.0]
    computes = RegionCall._all_compute

    def timed(*args):
        now[0] += 1
        return computes(*args)

    monkeypatch.setattr(RegionCall, "_all_compute", timed)
    monkeypatch.setattr("dit_compile.tuning.drawing.time.perf_counter", lambda: now[0])
    plan = tuned(seconds=12.0)
    assert plan.cost == 6 and plan.figures["plan"]["seconds"] == 12 and plan.figures["uncached_seconds"] == 20
    with pytest.raises(TuneError, match="nothing to save"):
        tuned(seconds=20.0)
    with pytest.raises(TuneError, match=r"no plan draws in 3 s: .* takes 20 s, with the cheapest plan about 4 s"):
        tuned(seconds=3.0)


def test_steps_are_handed_to_draw():
    asked = []
    pipe = Pipeline()

    def draw(prompt, seed, steps=10):
        asked.append(steps)
        return pipe(prompt, seed, steps)

    plan = dit_compile.tune(draw, PROMPTS, model=pipe.model, cost=0.6, steps=8, inner="eager")
    assert plan.steps == 8 and asked[0] == 8
    assert plan.figures["others"][-1]["name"] == "fewer steps" and round(plan.cost) in asked
    with pytest.raises(TuneError, match="draw\\(\\) takes no argument steps"):
        dit_compile.tune(lambda prompt, seed: pipe(prompt, seed), PROMPTS, model=pipe.model, cost=0.6, steps=8)


def test_a_solver_that_adds_noise(caplog):
    """Its rule cannot be read; weights are then fitted to what the blocks add."""
    pipe = Pipeline()

    def noisy(x, v, now, then):
        step = round(1000 * now)
        return x + (then - now) * v + 0.05 * now * latents(1, 5, 1000 + step)

    pipe.update = noisy
    plan = tuned(pipe, cost=0.6)
    assert plan.made["in_sequence"] == [False] and not plan.parts[0].corrections
    assert "cannot be read off" in caplog.text
    assert plan.parts[0].conditions.rules == (None, None)
    assert plan.figures["plan"]["psnr"] > 20


def test_an_interruption_keeps_what_was_recorded(caplog):
    pipe = Pipeline()
    calls = []

    def draw(prompt, seed):
        calls.append(prompt)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pipe(prompt, seed)

    plan = dit_compile.tune(draw, [*PROMPTS, "g", "h", "i"], model=pipe.model, cost=0.6, inner="eager")
    assert len(plan.made["prompts"]) == 3 and "interrupted" in caplog.text

    def interrupted(prompt, seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dit_compile.tune(interrupted, PROMPTS, model=pipe.model, cost=0.6, inner="eager")
    assert pipe.model._compiled_call_impl is None


def test_guidance_that_begins_on_the_way():
    """A second branch from step 3 on, which has no snapshots before."""

    class Late(Pipeline):
        def velocity(self, x, sigma, prompts):
            return super().velocity(x, sigma, prompts if sigma < 0.75 else prompts[:1])

    plan = tuned(Late(), cost=0.7)
    part = plan.parts[0]
    assert part.conditions.branches[:5] == (1, 1, 1, 2, 2) and 3 in part.computed
    assert all(min(one.sources) >= 3 for step, one in part.forecasts.items() if step > 3)
    pipe = Late()
    dit_compile.compile(pipe.model, plan=plan, **SETTINGS)
    pipe("a cat", 9)
    assert "in force" in dit_compile.stats(pipe.model)[-1].plan


REFUSED = {
    "no budget": ({}, "give one of cost, seconds, psnr and quality"),
    "two budgets": ({"cost": 0.5, "psnr": 40.0}, "give one of cost"),
    "too cheap": ({"cost": 0.05}, "the cheapest costs"),
    "a share above 1": ({"cost": 1.5}, "a share from 0 to 1"),
    "snapshots": ({"cost": 0.5, "snapshots": 7}, "snapshots must be from 2 to 6"),
    "too few prompts": ({"cost": 0.5, "prompts": ["a", "b"]}, "at least 3 are needed"),
    "held out": ({"cost": 0.5, "held_out": 6}, "at least 3 are needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_for(name):
    kwargs, message = REFUSED[name]
    with pytest.raises(TuneError, match=message):
        tuned(**kwargs)


def draw_another_model(pipe):
    other = Pipeline()
    return lambda prompt, seed: other(prompt, seed)


WRONG_DRAWS = {
    "another model": (draw_another_model, "has not called the model"),
    "no picture": (lambda pipe: lambda prompt, seed: str(pipe(prompt, seed)), "must return a picture"),
    "two generations": (
        lambda pipe: lambda prompt, seed: [pipe(prompt, seed), pipe(prompt, seed + 1)],
        "one generation",
    ),
    "other sizes": (lambda pipe: lambda prompt, seed: pipe(prompt, seed, 8 + seed % 2), "not drawn alike"),
    "too short": (lambda pipe: lambda prompt, seed: pipe(prompt, seed, 3), "at least 5 are needed"),
}


@pytest.mark.parametrize("name", WRONG_DRAWS)
def test_draws_that_cannot_be_planned(name):
    make, message = WRONG_DRAWS[name]
    pipe = Pipeline()
    with pytest.raises(TuneError, match=message):
        dit_compile.tune(make(pipe), PROMPTS, model=pipe.model, cost=0.6, inner="eager")
    assert pipe.model._compiled_call_impl is None


def test_a_model_that_is_not_cached():
    class Dropout(Model):
        """Draws random numbers in every block."""

        def make_block(self, index, width):
            block = super().make_block(index, width)
            block.norm = torch.nn.Sequential(block.norm, torch.nn.Dropout(0.1))
            return block

    pipe = Pipeline(model=build(Dropout).train())
    with pytest.raises(TuneError, match=r"not cached, so there is nothing to plan: .*random numbers"):
        tuned(pipe, cost=0.6)


def test_prompts_that_are_held_out():
    prompts = [Prompt(text, i) for i, text in enumerate("abcdefghijklmnop")]
    fit, judges = split(prompts, None)
    assert (len(fit), len(judges)) == (12, 4) and sorted(fit + judges) == prompts
    assert len(split(prompts, 2)[1]) == 2 and len(split(prompts[:3], None)[1]) == 1


def test_pixels():
    numpy = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    black, white = image.new("RGB", (4, 3)), image.new("RGB", (4, 3), "white")
    assert pixels_of([black, white]).tolist() == [0.0] * 36 + [1.0] * 36
    assert torch.equal(pixels_of(numpy.ones((2, 2), numpy.float32)), torch.ones(4).double())
    assert torch.equal(pixels_of(type("Out", (), {"images": torch.ones(1, 3)})()), torch.ones(3).double())
    with pytest.raises(TuneError, match="returned str"):
        pixels_of("a picture")
    one, other = torch.zeros(100).double(), torch.full((100,), 0.1).double()
    assert psnr(one, other, 1.0) == pytest.approx(20) and psnr(one, one, 1.0) == math.inf
    assert data_range([one - 1]) == 2 and data_range([other, pixels_of(white)]) == 1
    assert pixels_of(torch.full((2,), 51, dtype=torch.uint8)).tolist() == [0.2, 0.2]
    with pytest.raises(TuneError, match="another size"):
        psnr(one, other[:5], 1.0)


def test_figures_at_equal_cost():
    cheap, dear = Result("fast", 10.0, (40.0, 30.0)), Result("quality", 20.0, (60.0, 50.0))
    between = at_equal_cost([cheap, dear], 15.0, "presets")
    assert between.psnr == (50.0, 40.0) and (between.mean, between.worst) == (45.0, 40.0)
    assert at_equal_cost([cheap, dear], 30.0, "presets").psnr == dear.psnr
    assert at_equal_cost([dear], 10.0, "presets") is None, "nothing is as cheap"
    assert verdict(Result("plan", 15.0, (51.0, 40.0)), [between])[0]
    assert not verdict(Result("plan", 15.0, (60.0, 39.0)), [between])[0], "its worst picture is worse"


def test_cost_counts_blocks():
    def generation(*actions):
        stats = GenerationStats("m", "s", CacheConfig())
        stats.steps = [StepStats(i // 2, i % 2, action, "hit") for i, action in enumerate(actions)]
        return stats

    half = generation("compute", "compute", "compute", "reuse", "compute", "compute", "reuse", "compute")
    assert cost_of([half], (5,), 10, 4) == pytest.approx(4 - 2 / 2 * 0.5)
    assert cost_of([half, half], (5,), 10, 4) == pytest.approx(3.5), "a draw of two modules is one draw"
