"""A run under a plan does what the plan says; a run that the plan does not fit goes on with the guard, and says why."""

import copy
import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import stand_in_recorder
import torch
from guided_toy import Model, Pipeline, prompt_tensor
from toys import build, latents, timestep_embedding

import dit_compile
from dit_compile import Plan
from dit_compile.config import ConfigError
from dit_compile.runtime.planned import PlannedRun

PROMPTS = ["a cat", "two dogs", "a tree", "a red house", "nothing much", "a ship"]
SETTINGS = {"inner": "eager", "regions": False, "residual_diff_threshold": 0.6}


@pytest.fixture(scope="module")
def plans():
    """Plans for 10 steps with guidance 2, one for each cut, and the weights of the model that they are for."""
    torch.compiler.reset()
    made = {}
    for front in (0, 1):
        pipe = Pipeline()
        made[front] = dit_compile.tune(pipe, PROMPTS, model=pipe.model, cost=0.7, front=front, inner="eager")
    torch.compiler.reset()
    return made


def compiled(plan, **changes):
    settings = {name: changes.pop(name) for name in ("plan_guard", "max_bytes", "fn", "policy") if name in changes}
    pipe = Pipeline(**changes)
    dit_compile.compile(pipe.model, plan=plan, **SETTINGS, **settings)
    return pipe


def last(pipe):
    return dit_compile.stats(pipe.model)[-1]


def by_hand(plan, prompt, seed):
    """The run that ``plan`` describes, in plain eager code."""
    pipe, part = Pipeline(), plan.parts[0]
    model, front = pipe.model, part.cut.front
    rings = [{}, {}]
    prompts = [prompt_tensor(prompt), prompt_tensor("")]
    sigmas = pipe.sigmas(10)
    with torch.no_grad():
        x = latents(1, 5, seed)
        for step, (now, then) in enumerate(pairwise(sigmas)):
            outputs = []
            for branch, (ring, text) in enumerate(zip(rings, prompts, strict=True)):
                temb = timestep_embedding(torch.tensor([1000 * now]))
                base = model.embed(x)
                if front:
                    base = model.blocks[0](base, temb) + text.mean(1, keepdim=True)
                if step not in part.forecasts:
                    h = base if front else model.blocks[0](base, temb) + text.mean(1, keepdim=True)
                    for block in model.blocks[1:]:
                        h = block(h, temb)
                    ring[step] = h - base
                h = base + ring.get(step, 0.0)
                forecast = part.forecasts.get(step) or part.corrections.get(step)
                if forecast is not None:
                    [[weights]] = forecast.weights[branch]
                    h = base + sum(w * ring[source] for w, source in zip(weights, forecast.sources, strict=True))
                outputs.append(model.head(h))
            cond, uncond = outputs
            x = x + (then - now) * (uncond + 2.0 * (cond - uncond))
    return x


@pytest.mark.parametrize("front", [0, 1])
def test_a_run_is_what_the_plan_says(plans, front, caplog):
    plan = plans[front]
    assert plan.parts[0].corrections and len(plan.parts[0].computed) < 10
    pipe = compiled(plan)
    for seed, prompt in enumerate(PROMPTS[:2]):
        drawn = pipe(prompt, seed)
        torch.testing.assert_close(drawn, by_hand(plan, prompt, seed), rtol=1e-4, atol=1e-5)
        stats = last(pipe)
        assert [step.index for step in stats.steps if step.action == "compute"] == sorted([*plan.parts[0].computed] * 2)
        assert {step.reason for step in stats.steps} == {"plan", "hit", "no_snapshot"}
        assert stats.host_reads <= 2 and "in force" in stats.plan, "at steps 1 and 2 only"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_same_from_a_file_and_in_a_session(plans, tmp_path):
    path = plans[0].save(tmp_path / "toy.plan.json")
    expected = compiled(plans[0])("a cat", 7)
    torch.compiler.reset()
    assert torch.equal(compiled(str(path))("a cat", 7), expected)
    torch.compiler.reset()
    pipe = compiled(path)
    with dit_compile.session("without", plan=None, policy="interval"):
        other = pipe("a cat", 7)
    assert "plan" not in {step.reason for step in last(pipe).steps}
    with dit_compile.session("with", plan=path):
        assert torch.equal(pipe("a cat", 7), expected)
    assert not torch.equal(other, expected)


def test_the_same_through_torch_compile_and_the_environment(plans, tmp_path, monkeypatch):
    expected = compiled(plans[0])("a cat", 7)
    torch.compiler.reset()
    pipe = Pipeline()
    pipe.model = torch.compile(pipe.model, backend="dit_cache", options={"plan": plans[0], "inner": "eager"})
    assert torch.equal(pipe("a cat", 7), expected) and "in force" in last(pipe).plan
    torch.compiler.reset()
    monkeypatch.setenv("DIT_CACHE_PLAN", str(plans[0].save(tmp_path / "toy.plan.json")))
    monkeypatch.setenv("DIT_CACHE_INNER", "eager")
    pipe = Pipeline()
    pipe.model = torch.compile(pipe.model, backend="dit_cache")
    assert torch.equal(pipe("a cat", 7), expected) and "in force" in last(pipe).plan
    assert str(tmp_path) in last(pipe).config.describe()


def guard(**changes):
    """What the guard alone gives, in a process that has never seen a plan."""
    torch.compiler.reset()
    pipe = Pipeline(**{name: value for name, value in changes.items() if name != "model"})
    if "model" in changes:
        pipe.model = changes["model"]
    dit_compile.compile(pipe.model, **SETTINGS)
    return pipe("a cat", 7), {step.reason for step in last(pipe).steps}


def other_weights():
    model = build(Model)
    with torch.no_grad():
        model.blocks[3].down.weight.mul_(1.001)
    return model


class Adapter(torch.nn.Module):
    """A linear layer with a low-rank addition, as adapters make."""

    def __init__(self, base):
        super().__init__()
        self.base, self.up = base, torch.nn.Parameter(0.01 * torch.ones(base.out_features, 1))

    def forward(self, x):
        return self.base(x) + x.mean(-1, keepdim=True) @ self.up.T


def with_adapter():
    model = build(Model)
    for block in model.blocks:
        block.up = Adapter(block.up)
    return model.eval().requires_grad_(False)


OTHER_RUNS = {
    "steps": ({"steps": 14}, "time of step 1"),
    "fewer steps": ({"steps": 6}, "time of step 1"),
    "shift": ({"shift": 3.0}, "time of step 1"),
    "resolution": ({"tokens": 8}, "the latents have the shape"),
    "guidance": ({"guidance": 2.1}, "guidance, solver or step sizes are others"),
    "no guidance": ({"guidance": 1.0}, "had 1 calls"),
    "solver": ({"update": lambda x, v, now, then: x + 0.9 * (then - now) * v}, "guidance, solver or step sizes"),
    "dtype": ({"dtype": torch.float64}, "the latents are float64"),
    "weights": ({"model": other_weights()}, "the weights are others"),
    "adapter": ({"model": with_adapter()}, "the model's graph is another one"),
}


LATE = ("steps", "fewer steps", "shift", "guidance", "solver", "no guidance")  # is noticed at step 1 or 2


@pytest.mark.parametrize("front", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_plan_is_not_applied_to_another_run(plans, name, front, caplog):
    changes, message = OTHER_RUNS[name]
    if changes.get("dtype") is torch.float64:
        changes = {**changes, "model": build(Model).double()}
    pipe = compiled(plans[front], **copy.deepcopy({k: v for k, v in changes.items() if k != "update"}), **{
        k: v for k, v in changes.items() if k == "update"
    })  # fmt: skip
    drawn = pipe("a cat", 7)
    stats = last(pipe)
    assert message in stats.plan and "not applied" in stats.plan
    dit_compile.reset()
    pipe("a cat", 7)
    said = [record.getMessage() for record in caplog.records if "is not applied" in record.getMessage()]
    assert len(said) == 1 and message in said[0], "once, not for every generation"
    expected, reasons = guard(**changes)
    if name not in LATE:
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
        assert {step.reason for step in stats.steps} == reasons
        return
    assert {step.reason for step in stats.steps} <= reasons | {"plan", "plan_mismatch", "no_snapshot", "hit"}
    assert sum(step.action == "reuse" for step in stats.steps) > 0, "the guard goes on"
    truth = Pipeline(**changes)("a cat", 7)
    assert torch.dist(drawn, truth) < 4 * torch.dist(expected, truth), "it begins later, so it reuses other steps"


def test_a_generation_that_goes_on_after_the_plan(plans):
    """The same times, and more of them."""
    pipe = compiled(plans[0])
    longer = [*pipe.sigmas(10)[:-1], 0.05, 0.0]
    pipe.sigmas = lambda steps: longer
    assert bool(pipe("a cat", 7).isfinite().all())
    assert "more than 10 steps" in last(pipe).plan


def test_a_generation_that_is_cut_short_and_the_next_one(plans):
    pipe = compiled(plans[0])
    expected = pipe("a cat", 7)

    class Stop(Exception):
        pass

    def stop(step, x):
        if step == 5:
            raise Stop
        return x

    pipe.on_step = stop
    with pytest.raises(Stop):
        pipe("a cat", 7)
    pipe.on_step = lambda step, x: x
    assert torch.equal(pipe("a cat", 7), expected)
    plans_said = [one.plan for one in dit_compile.stats(pipe.model)]
    assert "ended after 5 of 10 steps" in plans_said[1] and "in force" in plans_said[2]


def test_not_a_number_is_not_forecast(plans):
    pipe = compiled(plans[0])
    step = max(plans[0].parts[0].computed[:-2])

    def poison(index, x):
        return x * float("nan") if index == step else x

    pipe.on_step = poison
    pipe("a cat", 7)
    after = [one for one in last(pipe).steps if one.index > step]
    assert "non_finite" in {one.reason for one in after} and "was computed" in last(pipe).plan
    pipe.on_step = lambda index, x: x
    assert bool(pipe("a cat", 7).isfinite().all()) and "in force" in last(pipe).plan


def test_no_room_for_snapshots(plans):
    pipe = compiled(plans[0], max_bytes=400)
    assert bool(pipe("a cat", 7).isfinite().all())
    assert "was computed" in last(pipe).plan or "not applied" in last(pipe).plan


def test_other_latents_at_a_forecast_step(plans):
    """A policy that looks at no data still notices another trajectory."""
    pipe = compiled(plans[0])
    step = next(iter(plans[0].parts[0].forecasts))
    pipe.on_step = lambda index, x: latents(1, 5, 99) * 3 if index == step else x
    pipe("a cat", 7)
    computed = [one.index for stats in dit_compile.stats(pipe.model) for one in stats.steps if one.action == "compute"]
    assert step in computed or 0 in computed[len(plans[0].parts[0].computed) :]


def test_a_difference_out_of_family(plans, caplog):
    plan = plans[0]
    pipe = compiled(plan, plan_guard=1)
    pipe("a cat", 7)
    assert "in force" in last(pipe).plan and last(pipe).host_reads > 0
    assert all(step.diff is not None for step in last(pipe).steps if step.action == "reuse")
    step = next(one for one in plan.parts[0].forecasts if one > 1)
    pipe.on_step = lambda index, x: x + 0.8 * latents(1, 5, 99) if index == step else x
    pipe("a cat", 7)
    stats = last(pipe)
    assert next(one.action for one in stats.steps if one.index == step) == "compute"
    assert {one.reason for one in stats.steps if one.index == step} & {"out_of_family", "no_snapshot", "threshold"}


def test_a_damaged_file_changes_nothing(plans, tmp_path, caplog):
    path = plans[0].save(tmp_path / "toy.plan.json")
    path.write_text(path.read_text().replace('"recommended"', '"Recommended"'))
    pipe = compiled(path)
    drawn = pipe("a cat", 7)
    assert [record for record in caplog.records if "was changed after it was written" in record.getMessage()]
    assert "was changed after it was written" in last(pipe).plan
    expected, _ = guard()
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)


def test_a_plan_that_the_graph_was_not_cut_for(plans):
    pipe = Pipeline()
    dit_compile.compile(pipe.model, **SETTINGS)
    pipe("a cat", 7)
    with dit_compile.session("with", plan=plans[0]):
        pipe("a cat", 7)
    assert "compiled without it" in last(pipe).plan
    with dit_compile.session("fits", plan=plans[1]):
        pipe("a cat", 7)
    assert "in force" in last(pipe).plan, "its cut is that of the guard"


@pytest.mark.parametrize("method", ["begin_call", "__init__"])
def test_an_error_in_the_plan_costs_no_picture(plans, method, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("on purpose")

    pipe = compiled(plans[0])
    monkeypatch.setattr(PlannedRun, method, fail)
    torch.testing.assert_close(pipe("a cat", 7), guard()[0], rtol=1e-4, atol=1e-5)
    assert "unexpected error" in caplog.text and "ZeroDivisionError" in caplog.text


def test_policy_plan_needs_a_plan(plans):
    with pytest.raises(ConfigError, match='policy="plan" needs plan'):
        dit_compile.compile(Pipeline().model, policy="plan")
    pipe = compiled(plans[0], policy="plan")
    pipe("a cat", 7)
    assert "in force" in last(pipe).plan


def test_a_copy_with_conditions_changed_is_another_plan(plans):
    one = plans[0].parts[0]
    other = Plan((replace(one, conditions=replace(one.conditions, weights="others")),))
    assert other.digest() != plans[0].digest()


def test_under_cuda_graphs_the_pictures_are_the_same(plans, monkeypatch):
    """By a stand-in that poisons what replays may overwrite."""
    expected = compiled(plans[0])("a cat", 7)
    torch.compiler.reset()
    stand_in_recorder.install(monkeypatch)
    pipe = Pipeline()
    dit_compile.compile(pipe.model, plan=plans[0], cuda_graphs="on", **SETTINGS)
    for seed in (5, 6, 7):
        drawn = pipe("a cat", seed)
        stats = last(pipe)
        assert "in force" in stats.plan
    assert torch.equal(drawn, expected)
    assert "3 of 3 segments" in stats.cuda_graphs
    pipe.guidance = 3.0
    assert bool(pipe("a cat", 7).isfinite().all()) and "not applied" in last(pipe).plan


def test_lagged_decisions_and_stored_snapshots(plans):
    """Decisions of a plan wait for nothing anyway; snapshots in fewer bits change the picture little."""
    expected = compiled(plans[0])("a cat", 7)
    for settings in ({"decision": "lagged"}, {"snapshot_dtype": "bfloat16"}):
        torch.compiler.reset()
        pipe = Pipeline()
        dit_compile.compile(pipe.model, plan=plans[0], **SETTINGS, **settings)
        drawn = pipe("a cat", 7)
        assert "in force" in last(pipe).plan
        torch.testing.assert_close(drawn, expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_saved_code_runs_the_plan(plans, tmp_path):
    pipe = Pipeline()
    dit_compile.compile(pipe.model, plan=plans[0], record=True, inner="inductor")
    expected = pipe("a cat", 7)
    dit_compile.save(pipe.model, tmp_path / "model.bin")
    torch.compiler.reset()
    other = Pipeline()
    dit_compile.compile(other.model, plan=plans[0], record=True, inner="inductor")
    dit_compile.load(other.model, tmp_path / "model.bin")
    assert torch.equal(other("a cat", 7), expected) and "in force" in last(other).plan


class TwoPaths(Model):
    """Another graph for prompts of three tokens: its blocks run in another way."""

    def forward(self, x, t, prompt):
        out = super().forward(x, t, prompt)
        return out if prompt.shape[1] == 2 else out + torch.sin(out)


def longer_negative(pipe):
    """``pipe`` with a negative prompt of three tokens."""
    velocity = pipe.velocity

    def longer(x, sigma, prompts):
        prompt, negative = prompts
        return velocity(x, sigma, [prompt, torch.cat([negative, negative[:, :1]], 1)])

    pipe.velocity = longer
    return pipe


def test_a_call_that_another_graph_serves(plans):
    pipe = Pipeline(model=build(TwoPaths))
    dit_compile.compile(pipe.model, plan=plans[0], **SETTINGS)
    pipe("a cat", 7)
    assert "in force" in last(pipe).plan
    drawn = longer_negative(pipe)("a cat", 7)
    assert "another graph" in last(pipe).plan
    truth = longer_negative(Pipeline(model=build(TwoPaths)))("a cat", 7)
    assert torch.dist(drawn, truth) < 0.2 * truth.norm()


def test_times_that_arrive_late(plans, monkeypatch):
    """As on a GPU. Where nobody says when a generation ends, the host waits for the times around its end."""
    expected = compiled(plans[0])("a cat", 7)
    torch.compiler.reset()
    monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
    pipe = compiled(plans[0])
    for _ in range(2):
        assert torch.equal(pipe("a cat", 7), expected)
        assert "in force" in last(pipe).plan and last(pipe).host_reads <= 6
    pipe.steps = 14
    pipe("a cat", 7)
    assert "time of step 1" in last(pipe).plan
