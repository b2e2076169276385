"""``dit_compile.tune`` with models of diffusers, solvers, ways of guidance and experts; each plan is then run anew."""

from __future__ import annotations

import inspect
import logging
from functools import partial

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from registry import few_blocks, registered
from torch import nn

import dit_compile
from dit_compile.tuning.errors import TuneError

pytestmark = pytest.mark.filterwarnings("ignore")
SLOW = pytest.mark.slow
STEPS = 10
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
SOLVERS = {
    "Euler": partial(FlowMatchEulerDiscreteScheduler, shift=3.0),
    "Heun": partial(FlowMatchHeunDiscreteScheduler, shift=3.0),
    "DPM++ 2M": partial(DPMSolverMultistepScheduler, **FLOW),
    "UniPC": partial(UniPCMultistepScheduler, **FLOW),
    "with noise": partial(FlowMatchEulerDiscreteScheduler, shift=3.0, stochastic_sampling=True),
}
LINEAR = ("Euler", "Heun", "DPM++ 2M", "UniPC")
PROMPTS = [("a cat", 1), ("two dogs", 2), ("a tree", 3), ("a red house", 4), ("a ship", 5), ("nothing", 6)]


def words(spec, prompt):
    """The inputs of one call with an embedding of ``prompt``, which may be any text."""
    inputs = spec.call()
    seed = sum(prompt.encode())
    drawn = torch.randn(inputs["encoder_hidden_states"].shape, generator=torch.Generator().manual_seed(seed))
    return {**inputs, "encoder_hidden_states": drawn}


class Sampler:
    """Draws with ``experts``, the first of which has the steps before ``switch``.

    Guidance is ``calls`` (two per step), ``halves`` (one call with both prompts) or ``none``. A picture is tanh of
    the final latents.
    """

    def __init__(self, spec, solver="Euler", guidance="calls", experts=1, switch=1 << 20):
        self.spec, self.solver, self.guidance, self.switch = spec, solver, guidance, switch
        self.transformer = spec.build(seed=1)
        if experts == 2:
            self.transformer_2 = spec.build(seed=2)

    @property
    def components(self):
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}

    def _velocity(self, number, x, t, sides):
        model = self.transformer if number < self.switch else self.transformer_2
        scale = self.spec.call()["timestep"].flatten()[0].item()
        time = (t / 1000 * scale).to(sides[0]["timestep"].dtype)
        if self.guidance == "halves":
            both = {
                name: torch.cat([side[name] for side in sides])
                if isinstance(sides[0][name], torch.Tensor) and sides[0][name].shape[:1] == (1,)
                else sides[0][name]
                for name in sides[0]
            }
            outputs = model(**both | {"hidden_states": torch.cat([x, x]), "timestep": time.expand(2)})[0].chunk(2)
        else:
            outputs = [model(**side | {"hidden_states": x, "timestep": time.expand(1)})[0] for side in sides]
        return outputs[0] if len(outputs) == 1 else outputs[1] + 2.0 * (outputs[0] - outputs[1])

    @torch.no_grad()
    def __call__(self, prompt, seed, steps=STEPS):
        generator = torch.Generator().manual_seed(seed)
        scheduler = SOLVERS[self.solver]()
        scheduler.set_timesteps(steps)
        sides = [words(self.spec, text) for text in ((prompt,) if self.guidance == "none" else (prompt, ""))]
        x = torch.randn(sides[0]["hidden_states"].shape, generator=generator)
        more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for number, t in enumerate(scheduler.timesteps):
            x = scheduler.step(self._velocity(number, x, t, sides), t, x, **more, return_dict=False)[0]
        return x.tanh()


def tuned(sampler, model=None, **budget):
    model = sampler.transformer if model is None else model
    return dit_compile.tune(sampler, PROMPTS, model=model, inner="eager", **{"cost": 0.6} | budget)


def check(sampler, plan, *, in_sequence=True, **settings):
    """The plan is no worse than repeating what was computed, and a model that is compiled anew draws its pictures."""
    assert plan.made["in_sequence"] == [in_sequence] * len(plan.parts)
    drawn = {one["name"]: one for one in [plan.figures["plan"], *plan.figures["others"]]}
    assert drawn["plan"]["cost"] == pytest.approx(plan.cost) and plan.cost <= 0.6 * plan.steps
    if in_sequence:  # what is fitted to residuals alone may be no better, which verification tells the user
        assert drawn["plan"]["psnr"] >= drawn["the same steps, reuse"]["psnr"]
    torch.compiler.reset()
    models = [module for name, module in sorted(sampler.components.items())]
    for module in models:
        dit_compile.compile(module, inner="eager", plan=plan, **settings)
    [prompt, seed] = plan.figures["held_out"][0]
    sampler(prompt, seed)  # the first call may run uncompiled
    with dit_compile.session("off", enabled=False):
        wanted = sampler(prompt, seed)
    with dit_compile.session("run"):
        got = sampler(prompt, seed)
    for module in models:
        assert "in force" in dit_compile.stats(module)[-1].plan
    db = 10 * torch.log10(4 / (wanted - got).double().square().mean())
    assert db.item() == pytest.approx(drawn["plan"]["psnr_of_each"][0], abs=0.1)


@SLOW
@pytest.mark.parametrize("solver", LINEAR)
def test_solvers_whose_updates_are_linear(solver):
    sampler = Sampler(few_blocks("WanTransformer3DModel"), solver, guidance="none")
    check(sampler, tuned(sampler))


@SLOW
@pytest.mark.parametrize("solver", ["Euler", "DPM++ 2M"])
@pytest.mark.parametrize("guidance", ["calls", "halves"])
def test_guidance_in_two_calls_and_in_one(guidance, solver):
    sampler = Sampler(few_blocks("SD3Transformer2DModel"), solver, guidance)
    plan = tuned(sampler)
    check(sampler, plan)
    conditions = plan.parts[0].conditions
    halves = guidance == "halves"
    assert (conditions.batch_branches, conditions.branches[0]) == ((2, 1) if halves else (1, 2))


@SLOW
def test_noise_of_the_solver_leads_to_a_fit_of_residuals(caplog):
    sampler = Sampler(few_blocks("FluxTransformer2DModel"), "with noise")
    with caplog.at_level(logging.WARNING):
        plan = tuned(sampler, num_steps=STEPS)
    assert "cannot be read off the latents" in caplog.text
    check(sampler, plan, in_sequence=False, num_steps=STEPS)


@SLOW
@pytest.mark.parametrize("switch", [5, 4])
def test_two_experts(switch):
    """The first expert has ``switch`` steps; four are too few to forecast one."""
    sampler = Sampler(few_blocks("WanTransformer3DModel"), experts=2, switch=switch)
    plan = tuned(sampler, sampler)
    check(sampler, plan)
    assert [part.conditions.steps for part in plan.parts] == [switch, 10 - switch]


@SLOW
def test_draws_of_other_numbers_of_steps_are_refused():
    small = Sampler(few_blocks("WanTransformer3DModel"), guidance="none")

    def draw(prompt, seed):
        return small(prompt, seed, steps=STEPS + seed % 2)

    with pytest.raises(TuneError, match="not drawn alike"):
        dit_compile.tune(draw, PROMPTS, model=small.transformer, cost=0.6, inner="eager")


@SLOW
def test_a_front_block_that_runs():
    sampler = Sampler(registered("SD3Transformer2DModel"))
    plan = tuned(sampler, front=1, snapshots=2)
    check(sampler, plan)
    assert plan.parts[0].cut.front == 1 and plan.parts[0].snapshots <= 2
